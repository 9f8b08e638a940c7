//! Follows every relative link in the documents: a renamed file breaks the build, not the reader.

use std::process::ExitCode;

use crate::cargo;
use crate::report::Counts;

pub(crate) fn run() -> anyhow::Result<ExitCode> {
    Ok(check()?.exit())
}

/// Checks that each relative link of each document leads to something.
pub(crate) fn check() -> anyhow::Result<Counts> {
    let root = cargo::root();
    let mut counts = Counts::default();
    for document in cargo::tracked("md")? {
        let path = root.join(&document);
        let text = std::fs::read_to_string(&path)?;
        let folder = path.parent().unwrap_or(&root);
        let broken: Vec<_> =
            targets(&text).filter(|target| !folder.join(target).exists()).collect();
        for target in &broken {
            println!("   {document}: nothing at `{target}`");
        }
        counts.add(Counts::one(broken.is_empty()));
    }
    Ok(counts)
}

/// Returns the relative targets of the inline links of a text, without fragments, outside of fenced blocks.
fn targets(text: &str) -> impl Iterator<Item = &str> {
    let prose = text.split("\n```").step_by(2);
    let after = prose.flat_map(|prose| prose.split("](").skip(1));
    let targets = after.filter_map(|rest| rest.split_once(')')).map(|(target, _)| target);
    let relative =
        targets.filter(|target| !target.contains("://") && !target.starts_with("mailto:"));
    relative
        .map(|target| target.split('#').next().unwrap_or(target))
        .filter(|target| !target.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_relative_links_in_prose_are_followed() {
        let text = "[a](b.md#c) [d](https://e) [f](#g)\n```sh\n[h](i)\n```\n[j](k/)";
        assert_eq!(targets(text).collect::<Vec<_>>(), ["b.md", "k/"]);
    }
}
