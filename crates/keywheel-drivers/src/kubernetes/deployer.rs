//! Programs that bring objects to a cluster as they stand somewhere else, by how they call themselves where they write.

/// How deployers call themselves, or how that begins, and what people call them.
const DEPLOYERS: [(&str, &str); 8] = [
    ("argocd", "Argo CD"),
    ("kustomize-controller", "Flux"),
    ("helm-controller", "Flux"),
    ("helm", "Helm"),
    ("Terraform", "Terraform"),
    ("terraform", "Terraform"),
    ("HashiCorp", "Terraform"),
    ("pulumi", "Pulumi"),
];

/// Returns which deployer a field manager is; none where it is none that is known.
pub(crate) fn deployer(manager: &str) -> Option<&'static str> {
    DEPLOYERS.iter().find(|(begins, _)| manager.starts_with(begins)).map(|(_, name)| *name)
}

/// Returns what people call a field manager: a deployer, or a person's own `kubectl`.
pub(crate) fn known_as(manager: &str) -> Option<&'static str> {
    deployer(manager).or_else(|| manager.starts_with("kubectl").then_some("kubectl, by hand"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_deployer_is_known_by_how_it_calls_itself() {
        assert_eq!(deployer("argocd-controller"), Some("Argo CD"));
        assert_eq!(deployer("helm"), Some("Helm"));
        assert_eq!(deployer("helm-controller"), Some("Flux"));
        assert_eq!(deployer("kubectl-edit"), None);
        assert_eq!(known_as("kubectl-edit"), Some("kubectl, by hand"));
        assert_eq!(known_as("operator"), None);
    }
}
