//! `requires`: which versions of keywheel may read a file. It is checked before anything else, since a newer file may hold
//! keys that this version does not know.

use semver::{Version, VersionReq};

use super::problem::Problem;
use super::tree::{Node, Value};
use crate::code;

/// Checks the file's `requires` against this version.
///
/// # Errors
/// A [`Problem`] where it is no requirement, or this version does not meet it.
pub(crate) fn check(tree: &Node) -> Result<(), Problem> {
    check_against(tree, env!("CARGO_PKG_VERSION"))
}

fn check_against(tree: &Node, version: &str) -> Result<(), Problem> {
    let Some(node) = tree.get("requires") else { return Ok(()) };
    let Value::Text(text) = &node.value else { return Ok(()) };
    let version = Version::parse(version).expect("a crate's version is a version");
    match VersionReq::parse(text) {
        Err(_) => {
            let message = "`requires` must be a requirement on versions, such as `>=0.1`";
            Err(Problem::new(code::WRONG_VALUE, message).at(node.place))
        }
        Ok(wanted) if !wanted.matches(&version) => {
            // Numbers can be shown; a pre-release part is free text of the file.
            let shown = if wanted.comparators.iter().all(|one| one.pre.is_empty()) {
                format!("`{wanted}`")
            } else {
                "another version".into()
            };
            let message = format!("this is keywheel {version}, and the file requires {shown}");
            Err(Problem::new(code::REQUIRES, message)
                .at(node.place)
                .hint("install a version that fits"))
        }
        Ok(_) => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(requires: &str) -> Option<String> {
        let tree =
            Node::parse(&format!("requires: \"{requires}\"\n")).unwrap_or_else(|e| panic!("{e}"));
        check_against(&tree, "0.3.1").err().map(|problem| problem.to_string())
    }

    #[test]
    fn a_file_says_which_versions_may_read_it() {
        assert_eq!(refused(">=0.1"), None);
        assert_eq!(refused("0.3"), None);
        assert_eq!(refused(">=0.1, <0.4"), None);
        insta::assert_snapshot!(refused(">=0.4").unwrap(), @"K0115 1:11: this is keywheel 0.3.1, and the file requires `>=0.4` (install a version that fits)");
        assert!(!refused(">=0.4.0-CANARY").unwrap().contains("CANARY"));
        insta::assert_snapshot!(refused("CANARY").unwrap(), @"K0105 1:11: `requires` must be a requirement on versions, such as `>=0.1`");
    }
}
