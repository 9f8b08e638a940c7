//! References to secrets, as drivers read them.

use keywheel_core::secret::SecretValue;
use keywheel_driver::{Refusal, RefusalKind, SecretReference};

use crate::Context;

/// Makes a relative path of a reference begin at the folder of the configuration file.
pub(crate) fn from_root(reference: &SecretReference, context: &Context) -> SecretReference {
    match reference {
        SecretReference::File(path) => SecretReference::File(context.root.join(path)),
        other => other.clone(),
    }
}

/// Reads a reference; off the runtime's threads, since it may be a program.
///
/// # Errors
/// That of the reference.
pub(crate) async fn read(reference: &SecretReference) -> Result<SecretValue, Refusal> {
    let own = reference.clone();
    let read = tokio::task::spawn_blocking(move || own.resolve()).await;
    read.unwrap_or_else(|_| {
        Err(Refusal::operator(RefusalKind::Local, format!("{reference} could not be read")))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_relative_file_begins_at_the_configuration() {
        let context = Context::at("/etc/app");
        let rooted = |path: &str| from_root(&SecretReference::File(path.into()), &context);
        assert_eq!(rooted("admin.key"), SecretReference::File("/etc/app/admin.key".into()));
        assert_eq!(rooted("/run/admin.key"), SecretReference::File("/run/admin.key".into()));
    }
}
