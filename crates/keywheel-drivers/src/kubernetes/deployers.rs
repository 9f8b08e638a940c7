//! Who brings objects as they stand somewhere else, and writes back what does not stand there.

/// How they call themselves where they write, and what people call them.
const DEPLOYERS: [(&str, &str); 7] = [
    ("argocd", "Argo CD"),
    ("kustomize-controller", "Flux"),
    ("helm", "Helm"),
    ("Terraform", "Terraform"),
    ("terraform", "Terraform"),
    ("HashiCorp", "Terraform"),
    ("pulumi", "Pulumi"),
];

/// Returns what people call a field manager that deploys.
pub(crate) fn deployer(manager: &str) -> Option<&'static str> {
    DEPLOYERS.iter().find(|(begins, _)| manager.starts_with(begins)).map(|(_, name)| *name)
}
