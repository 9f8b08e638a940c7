//! Whoever else wrote what keywheel writes, as the place itself tells it. They are named and never fought: two that write the same
//! field undo each other without end (H48, H49).

/// Somebody who wrote it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Writer {
    /// How they call themselves where they write.
    pub name: String,
    /// What people call them, where that is known.
    pub known_as: Option<String>,
    /// When they wrote it last, in words, where that is told.
    pub at: Option<String>,
    /// What keeps them from writing it again, where that is known.
    pub helps: Option<String>,
}

impl Writer {
    /// Returns them with what is known of them: `` `argocd-controller` (Argo CD, 2026-01-01T00:00:00Z) ``.
    pub fn in_words(&self) -> String {
        let known: Vec<_> =
            [&self.known_as, &self.at].into_iter().flatten().map(String::as_str).collect();
        match known.is_empty() {
            true => format!("`{}`", self.name),
            false => format!("`{}` ({})", self.name, known.join(", ")),
        }
    }
}

/// Names all of them, and says what helps; somebody else where nobody is known.
pub fn in_words(writers: &[Writer]) -> String {
    if writers.is_empty() {
        return "somebody else".into();
    }
    let names: Vec<_> = writers.iter().map(Writer::in_words).collect();
    let mut told = names.join(", ");
    let mut helps: Vec<_> = writers.iter().filter_map(|writer| writer.helps.as_deref()).collect();
    helps.dedup();
    for help in helps {
        told.push_str("; ");
        told.push_str(help);
    }
    told
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whoever_wrote_is_named_with_what_is_known_and_what_helps() {
        let named =
            |name: &str| Writer { name: name.into(), known_as: None, at: None, helps: None };
        assert_eq!(in_words(&[]), "somebody else");
        assert_eq!(in_words(&[named("vim"), named("ci")]), "`vim`, `ci`");
        let argo = Writer {
            known_as: Some("Argo CD".into()),
            at: Some("at noon".into()),
            helps: Some("tell it".into()),
            ..named("argocd-controller")
        };
        assert_eq!(in_words(&[argo]), "`argocd-controller` (Argo CD, at noon); tell it");
    }
}
