//! Searches a folder for secrets that a test used: every byte of every file, and every name, in eight encodings.
//!
//! Tests take their secrets from a generator that puts a marker into each. What no test makes, such as the value that a
//! rotation generates, is listed by the test in a file `*.canaries`, one a line. A place where a value may stand is named
//! in [`ALLOWED`], with the reason; everything else that is found is a leak. (hazards.md, I09)

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use aho_corasick::AhoCorasick;
use anyhow::Context;
use base64::Engine;
use base64::engine::general_purpose::{STANDARD, URL_SAFE};

use crate::report::Counts;

/// What every secret of a test holds.
pub(crate) const MARKER: &str = "kwcanary";

/// Files that list further secrets of their test.
const LISTS: &str = ".canaries";

/// The shortest value that is searched for; a shorter one would be found everywhere.
const SHORTEST: usize = 8;

/// Where a value may stand: a path relative to the folder, in which `*` is any one name, and the reason.
const ALLOWED: [(&str, &str); 3] = [
    ("kill9/*/app.env", "the store that the rotation writes"),
    ("kill9/*/admin-key", "the issuer's own key, as an operator would keep it"),
    ("demo/*/app.env", "the store that the demonstration writes"),
];

/// What to search.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// The folder.
    #[arg(long)]
    dir: PathBuf,
}

pub(crate) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let counts = check(&args.dir)?;
    println!("{counts}");
    Ok(counts.exit())
}

/// Searches a folder and says what was found, never the value.
pub(crate) fn check(folder: &Path) -> anyhow::Result<Counts> {
    let found = scan(folder)?;
    for leak in &found.leaks {
        println!("   {}: a secret as {}, at byte {}", leak.path.display(), leak.encoding, leak.at);
    }
    let Found { files, bytes, canaries, .. } = found;
    println!(
        "   {files} files, {} MiB, {canaries} secrets, {} encodings",
        bytes >> 20,
        ENCODINGS.len()
    );
    Ok(Counts::one(found.leaks.is_empty()))
}

/// What a search came upon.
#[derive(Debug, Default)]
struct Found {
    leaks: Vec<Leak>,
    files: u64,
    bytes: u64,
    canaries: usize,
}

/// A secret where none may be.
#[derive(Debug, PartialEq, Eq)]
struct Leak {
    path: PathBuf,
    encoding: &'static str,
    at: usize,
}

fn scan(folder: &Path) -> anyhow::Result<Found> {
    let files = files_below(folder)?;
    let mut canaries = BTreeSet::from([MARKER.as_bytes().to_vec()]);
    for list in files.iter().filter(|file| is_list(file)) {
        let list = fs::read(folder.join(list))?;
        canaries.extend(
            list.split(|byte| *byte == b'\n')
                .filter(|line| line.len() >= SHORTEST)
                .map(<[u8]>::to_vec),
        );
    }
    let searcher = Searcher::new(&canaries)?;
    let mut found = Found { canaries: canaries.len(), ..Found::default() };
    for file in files.iter().filter(|file| !is_list(file)) {
        let path = folder.join(file);
        let contents = match fs::symlink_metadata(&path)? {
            of if of.is_symlink() => fs::read_link(&path)?.as_os_str().as_bytes().to_vec(),
            of if of.is_file() => {
                fs::read(&path).with_context(|| format!("`{}` cannot be read", path.display()))?
            }
            _ => Vec::new(),
        };
        found.files += 1;
        found.bytes += contents.len() as u64;
        let inside = if is_allowed(file) { BTreeMap::new() } else { searcher.search(&contents) };
        let named = searcher.search(file.as_os_str().as_bytes());
        let leaks = inside.into_iter().chain(named);
        found.leaks.extend(leaks.map(|(encoding, at)| Leak { path: file.clone(), encoding, at }));
    }
    Ok(found)
}

fn is_list(file: &Path) -> bool {
    file.as_os_str().as_bytes().ends_with(LISTS.as_bytes())
}

fn is_allowed(file: &Path) -> bool {
    ALLOWED.iter().any(|(pattern, _)| {
        let pattern: Vec<_> = Path::new(pattern).components().collect();
        let parts: Vec<_> = file.components().collect();
        let fits =
            |(name, part): (&std::path::Component<'_>, &_)| name.as_os_str() == "*" || name == part;
        pattern.len() == parts.len() && pattern.iter().zip(&parts).all(fits)
    })
}

/// Returns everything below a folder that is no folder, relative to it.
fn files_below(folder: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    let mut folders = vec![PathBuf::new()];
    while let Some(below) = folders.pop() {
        let path = folder.join(&below);
        for entry in
            fs::read_dir(&path).with_context(|| format!("`{}` cannot be read", path.display()))?
        {
            let entry = entry?;
            let name = below.join(entry.file_name());
            if entry.file_type()?.is_dir() { folders.push(name) } else { files.push(name) }
        }
    }
    files.sort();
    Ok(files)
}

/// One way to write bytes down; several forms where the surroundings change it.
type Encode = fn(&[u8]) -> Vec<Vec<u8>>;

/// The encodings in which a value is searched for.
const ENCODINGS: [(&str, Encode); 8] = [
    ("plain bytes", |value| vec![value.to_vec()]),
    ("base64", |value| shifted(value, |bytes| STANDARD.encode(bytes))),
    ("base64 for URLs", |value| shifted(value, |bytes| URL_SAFE.encode(bytes))),
    ("hex", |value| vec![hex::encode(value).into_bytes()]),
    ("hex in capitals", |value| vec![hex::encode_upper(value).into_bytes()]),
    ("percent-encoding", percent),
    ("JSON escapes", json),
    ("a list of numbers", |value| {
        vec![format!("{value:?}").trim_matches(['[', ']']).as_bytes().to_vec()]
    }),
];

/// Base64 looks different at each of three offsets; the characters that its neighbours change are left out.
fn shifted(value: &[u8], encode: impl Fn(&[u8]) -> String) -> Vec<Vec<u8>> {
    let at = |offset: usize| {
        let text = encode(&[&vec![0; offset][..], value].concat());
        text.as_bytes()[(offset * 8).div_ceil(6)..(offset + value.len()) * 8 / 6].to_vec()
    };
    (0..3).map(at).collect()
}

fn percent(value: &[u8]) -> Vec<Vec<u8>> {
    let needed = |byte: u8| !(byte.is_ascii_alphanumeric() || b"-._~".contains(&byte));
    let write = |all: bool, capitals: bool| {
        let escape =
            |byte: u8| if capitals { format!("%{byte:02X}") } else { format!("%{byte:02x}") };
        let one = |&byte: &u8| {
            if all || needed(byte) { escape(byte) } else { char::from(byte).to_string() }
        };
        value.iter().map(one).collect::<String>().into_bytes()
    };
    vec![write(true, true), write(true, false), write(false, true), write(false, false)]
}

fn json(value: &[u8]) -> Vec<Vec<u8>> {
    let text = String::from_utf8_lossy(value);
    let short = serde_json::Value::from(text.as_ref()).to_string();
    let escape = |unit: u16| format!("\\u{unit:04x}");
    let all = text.encode_utf16().map(escape).collect::<String>();
    vec![
        short.trim_matches('"').as_bytes().to_vec(),
        all.to_uppercase().replace("\\U", "\\u").into_bytes(),
        all.into_bytes(),
    ]
}

/// Searches for every canary in every encoding at once.
struct Searcher {
    patterns: AhoCorasick,
    encodings: Vec<&'static str>,
}

impl Searcher {
    fn new(canaries: &BTreeSet<Vec<u8>>) -> anyhow::Result<Self> {
        let mut patterns = BTreeMap::new();
        for canary in canaries {
            for (encoding, encode) in ENCODINGS.iter().rev() {
                patterns.extend(encode(canary).into_iter().map(|pattern| (pattern, *encoding)));
            }
        }
        let (patterns, encodings): (Vec<_>, _) = patterns.into_iter().unzip();
        Ok(Self { patterns: AhoCorasick::new(patterns)?, encodings })
    }

    /// Returns each encoding that was found, and where first.
    fn search(&self, contents: &[u8]) -> BTreeMap<&'static str, usize> {
        let mut found = BTreeMap::new();
        for hit in self.patterns.find_iter(contents) {
            found.entry(self.encodings[hit.pattern().as_usize()]).or_insert(hit.start());
        }
        found
    }
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;
    use crate::tools;

    /// A value of some test, with bytes that encodings treat in different ways.
    fn canary() -> Vec<u8> {
        [MARKER.as_bytes(), b"-4f\"9/~\xc3\xa4?>"].concat()
    }

    fn folder_with(write: impl FnOnce(&Path)) -> (tempfile::TempDir, Vec<&'static str>) {
        let folder = tempfile::TempDir::new().unwrap();
        write(folder.path());
        let found = scan(folder.path()).unwrap().leaks;
        (folder, found.into_iter().map(|leak| leak.encoding).collect())
    }

    #[test]
    fn a_leak_in_every_encoding_is_found_in_every_kind_of_file() {
        for (name, encode) in ENCODINGS {
            for form in encode(&canary()) {
                for (kind, before) in
                    [("log", &b"2026-01-01 error: answer was "[..]), ("page", &[0, 255, 13, 10])]
                {
                    let contents = [before, &form, b"...\n"].concat();
                    let (_folder, found) =
                        folder_with(|folder| fs::write(folder.join(kind), contents).unwrap());
                    assert_eq!(found.len(), 1, "{name} in a {kind}");
                }
            }
        }
    }

    #[test]
    fn a_leak_inside_longer_base64_is_found_at_every_offset() {
        for offset in 0..7 {
            let text = [&b"user:passw"[..offset], &canary(), b"@host"].concat();
            for encoded in [STANDARD.encode(&text), URL_SAFE.encode(&text)] {
                let (_folder, found) =
                    folder_with(|folder| fs::write(folder.join("f"), encoded).unwrap());
                assert!(!found.is_empty(), "offset {offset}");
            }
        }
    }

    #[test]
    fn a_leak_in_a_database_is_found_even_after_its_row_was_deleted() {
        let (_folder, found) = folder_with(|folder| {
            let database = rusqlite::Connection::open(folder.join("journal.db")).unwrap();
            database.execute_batch("PRAGMA secure_delete = OFF; CREATE TABLE t (v BLOB);").unwrap();
            database.execute("INSERT INTO t VALUES (?1)", [canary()]).unwrap();
            database.execute("DELETE FROM t", []).unwrap();
        });
        assert_eq!(found, ["plain bytes"]);
    }

    #[test]
    fn a_leak_in_the_arguments_of_a_process_is_found_in_its_trace() {
        if tools::find("strace").is_none() {
            eprintln!("skipped: there is no strace");
            return;
        }
        let (_folder, found) = folder_with(|folder| {
            let mut strace = Command::new("strace");
            strace
                .args(["-f", "-s", "65536", "-e", "trace=execve", "-o"])
                .arg(folder.join("execve"));
            let traced =
                strace.args(["true", "--password", &format!("{MARKER}-1")]).output().unwrap();
            assert!(traced.status.success(), "strace cannot trace here");
        });
        assert_eq!(found, ["plain bytes"]);
    }

    #[test]
    fn a_leak_in_a_name_or_behind_a_link_is_found() {
        let (_folder, found) = folder_with(|folder| {
            fs::write(folder.join(format!("{MARKER}-1.tmp")), "").unwrap();
            std::os::unix::fs::symlink(format!("/nowhere/{MARKER}"), folder.join("link")).unwrap();
        });
        assert_eq!(found, ["plain bytes", "plain bytes"]);
    }

    #[test]
    fn a_listed_value_is_searched_for_outside_of_its_list() {
        let (_folder, found) = folder_with(|folder| {
            fs::write(folder.join("run.canaries"), "Zq8-generated-value\nshort\n").unwrap();
            fs::write(
                folder.join("log"),
                format!("got {} and short", STANDARD.encode("Zq8-generated-value")),
            )
            .unwrap();
        });
        assert_eq!(found, ["base64"]);
    }

    #[test]
    fn a_value_may_stand_in_a_named_place_only() {
        let (folder, found) = folder_with(|folder| {
            for place in ["kill9/a/b", "elsewhere/a"] {
                fs::create_dir_all(folder.join(place)).unwrap();
            }
            for place in [
                "kill9/a/app.env",
                "kill9/a/b/app.env",
                "elsewhere/a/app.env",
                "kill9/a/app.env.tmp",
            ] {
                fs::write(folder.join(place), canary()).unwrap();
            }
        });
        assert_eq!(found.len(), 3);
        let leaks = scan(folder.path()).unwrap().leaks;
        assert!(leaks.iter().all(|leak| leak.path != Path::new("kill9/a/app.env")));
    }
}
