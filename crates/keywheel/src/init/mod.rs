//! What `keywheel init` finds in a folder, and the configuration that it proposes.
//!
//! [`walk`] finds the files, [`compose`] reads Compose files, [`running`] looks at what runs of them, [`survey`] recognises
//! credentials ([`credential`]) and who reads them, [`propose`] arranges them, [`text`] writes the YAML, and [`write`] puts it
//! into place. For Kubernetes, [`manifests`] are read, or a cluster is asked, and [`kubernetes`] arranges what pods are given of Secrets. Values are compared in memory and nowhere else: what these modules say and write holds names, places and kinds
//! only.

pub(crate) mod compose;
pub(crate) mod credential;
pub(crate) mod environment;
pub(crate) mod git;
pub(crate) mod interpolation;
pub(crate) mod known;
pub(crate) mod kubernetes;
pub(crate) mod manifests;
pub(crate) mod propose;
pub(crate) mod running;
pub(crate) mod survey;
pub(crate) mod text;
pub(crate) mod walk;
pub(crate) mod write;

use serde::Serialize;

/// Something that people should know, and where it is.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub(crate) struct Warning {
    /// The file, as seen from the folder.
    pub(crate) file: Option<String>,
    /// The line.
    pub(crate) line: Option<u64>,
    /// What it is, without any value.
    pub(crate) message: String,
}

impl Warning {
    /// Makes a warning about a file.
    pub(crate) fn of(file: &str, message: impl Into<String>) -> Self {
        Self { file: Some(plain(file)), line: None, message: message.into() }
    }

    /// Says on which line.
    #[must_use]
    pub(crate) fn line(self, line: u64) -> Self {
        Self { line: Some(line), ..self }
    }
}

impl std::fmt::Display for Warning {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match (&self.file, self.line) {
            (Some(file), Some(line)) => write!(f, "{file}:{line}: {}", self.message),
            (Some(file), None) => write!(f, "{file}: {}", self.message),
            (None, _) => f.write_str(&self.message),
        }
    }
}

/// Returns a path so that it stays on its line: what is no printable character is escaped.
pub(crate) fn plain(path: &str) -> String {
    let escape = |c: char| {
        let printable = !c.is_control() && !is_directional(c) && c != '`';
        if printable { c.to_string() } else { c.escape_unicode().to_string() }
    };
    path.chars().map(escape).collect()
}

/// Characters that end a line or turn the direction of writing.
fn is_directional(c: char) -> bool {
    matches!(c, '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{feff}')
}
