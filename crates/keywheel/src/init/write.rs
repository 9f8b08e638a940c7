//! Putting text into place: a new file that replaces none, or an old one with lines added and nothing else changed.

use std::fs::{File, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use super::text::{Section, indented, scalar};
use crate::config::tree::{Node, Value};

/// Writes a file that is not there yet.
///
/// # Errors
/// Why it cannot; `AlreadyExists` where it came to be meanwhile.
pub(crate) fn create(path: &Path, text: &str) -> io::Result<()> {
    let beside = beside(path, text, 0o644)?;
    beside.persist_noclobber(path).map_err(|error| error.error)?;
    sync_folder(path)
}

/// Replaces a file whose text is still the one that was read.
///
/// # Errors
/// Why it cannot; `Other` where somebody changed it meanwhile.
pub(crate) fn replace(path: &Path, before: &str, text: &str) -> io::Result<()> {
    let path = std::fs::canonicalize(path)?;
    let mode = std::fs::metadata(&path)?.permissions().mode() & 0o777;
    let beside = beside(&path, text, mode)?;
    if std::fs::read(&path)? != before.as_bytes() {
        return Err(io::Error::other("it was changed meanwhile"));
    }
    beside.persist(&path).map_err(|error| error.error)?;
    sync_folder(&path)
}

fn beside(path: &Path, text: &str, mode: u32) -> io::Result<tempfile::NamedTempFile> {
    let mut file = tempfile::Builder::new().prefix(".keywheel-init-").tempfile_in(folder(path))?;
    file.write_all(text.as_bytes())?;
    file.as_file().set_permissions(Permissions::from_mode(mode))?;
    file.as_file().sync_all()?;
    Ok(file)
}

fn sync_folder(path: &Path) -> io::Result<()> {
    File::open(folder(path))?.sync_all()
}

fn folder(path: &Path) -> &Path {
    path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// Adds sections to a text; none where the text is written so that lines cannot be added to it.
pub(crate) fn with(text: &str, sections: &[Section], remarks: &[String]) -> Option<String> {
    let mut new = text.to_owned();
    if !new.is_empty() && !new.ends_with('\n') {
        new.push('\n');
    }
    for section in sections {
        new = with_section(&new, section)?;
    }
    new.push_str(&indented(remarks, 0));
    let (old, read) = (Node::parse(text).ok()?, Node::parse(&new).ok()?);
    holds(&read, &old).then_some(new)
}

fn with_section(text: &str, section: &Section) -> Option<String> {
    let tree = Node::parse(text).ok()?;
    let names: Vec<&str> = section.path.iter().map(String::as_str).collect();
    let there = (0..=names.len()).rev().find(|depth| tree.at(&names[..*depth]).is_some())?;
    let missing = &names[there..];
    let mut lines = Vec::new();
    for (depth, name) in missing.iter().enumerate() {
        let last = depth + 1 == missing.len();
        let remark = if last && section.only_remarks() { "# " } else { "" };
        lines.push(format!("{}{remark}{}:", "  ".repeat(depth), scalar(name)));
    }
    let below = indented(&section.lines, missing.len());
    lines.extend(below.lines().map(Into::into));
    if there == 0 {
        return Some(format!("{text}\n{}", indented(&lines, 0)));
    }
    insert(text, &tree, &names[..there], &lines)
}

/// Puts lines right below a key, as far in as what stands there.
fn insert(text: &str, tree: &Node, path: &[&str], lines: &[String]) -> Option<String> {
    let node = tree.at(path)?;
    let key = tree.place_of(path);
    let column = match &node.value {
        Value::Null => key.column + 2,
        Value::Map(entries) => {
            let (first, _) = entries.first()?;
            if first.place.line <= key.line {
                return None;
            }
            first.place.column
        }
        _ => return None,
    };
    let spaces = " ".repeat(usize::try_from(column).ok()? - 1);
    let added = lines.iter().map(|line| match line.is_empty() {
        true => "\n".into(),
        false => format!("{spaces}{line}\n"),
    });
    let line = usize::try_from(key.line).ok()?;
    let before: String = text.split_inclusive('\n').take(line).collect();
    Some(format!("{before}{}{}", added.collect::<String>(), &text[before.len()..]))
}

/// Returns whether a tree holds all that another one does.
fn holds(new: &Node, old: &Node) -> bool {
    match (&new.value, &old.value) {
        (_, Value::Null) => true,
        (Value::Bool(a), Value::Bool(b)) => a == b,
        (Value::Integer(a), Value::Integer(b)) => a == b,
        (Value::Float(a), Value::Float(b)) => a.to_bits() == b.to_bits(),
        (Value::Text(a), Value::Text(b)) => a == b,
        (Value::List(a), Value::List(b)) => {
            a.len() == b.len() && a.iter().zip(b).all(|(a, b)| holds(a, b))
        }
        (Value::Map(_), Value::Map(entries)) => {
            entries.iter().all(|(key, b)| new.get(&key.name).is_some_and(|a| holds(a, b)))
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn section(path: &[&str], lines: &[&str]) -> Section {
        let own = |texts: &[&str]| texts.iter().map(|text| (*text).to_owned()).collect();
        Section { path: own(path), lines: own(lines) }
    }

    #[test]
    fn lines_are_put_below_their_key_and_nothing_else_changes() {
        let text = "project: shop # a remark\nstores:\n    # the first\n    a: { file: { path: x } }\nsecrets:\n";
        let sections = [
            section(&["stores"], &["b: { file: { path: y } }"]),
            section(&["workloads"], &["w:", "  reads: [b]"]),
            section(&["secrets"], &["# one", "s:", "  read_by: [w]"]),
        ];
        insta::assert_snapshot!(with(text, &sections, &[]).unwrap(), @r"
        project: shop # a remark
        stores:
            b: { file: { path: y } }
            # the first
            a: { file: { path: x } }
        secrets:
          # one
          s:
            read_by: [w]

        workloads:
          w:
            reads: [b]
        ");
    }

    #[test]
    fn a_mapping_in_one_line_is_left_alone() {
        let sections = [section(&["stores"], &["b: 1"])];
        assert!(with("stores: { a: 1 }\n", &sections, &[]).is_none());
        assert!(with("stores: {\n  a: 1 }\n", &sections, &[]).is_none());
        assert!(with("stores: [\n  a ]\n", &sections, &[]).is_none());
    }

    #[test]
    fn environments_are_found_by_their_path() {
        let text = "environments:\n  staging:\n    stores:\n      a: 1\n";
        let sections = [
            section(&["environments", "staging", "stores"], &["b: 2"]),
            section(&["environments", "staging", "workloads"], &["w: 3"]),
            section(&["environments", "production", "stores"], &["c: 4"]),
        ];
        insta::assert_snapshot!(with(text, &sections, &[]).unwrap(), @r"
        environments:
          production:
            stores:
              c: 4
          staging:
            workloads:
              w: 3
            stores:
              b: 2
              a: 1
        ");
    }
}
