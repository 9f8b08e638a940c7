//! Environments, as the names of files and folders tell them.

/// Words and the environment that they mean.
const WORDS: &[(&str, &str)] = &[
    ("production", "production"),
    ("prod", "production"),
    ("live", "production"),
    ("staging", "staging"),
    ("stage", "staging"),
    ("preview", "preview"),
    ("development", "development"),
    ("dev", "development"),
    ("testing", "test"),
    ("test", "test"),
    ("ci", "test"),
    ("qa", "qa"),
    ("local", "local"),
];

/// Returns the environment that a word means.
pub(crate) fn of_word(word: &str) -> Option<&'static str> {
    let word = word.to_ascii_lowercase();
    WORDS.iter().find(|(known, _)| *known == word).map(|(_, name)| *name)
}

/// Returns the environment that a path tells: by the parts of the file's name, else by the nearest folder.
pub(crate) fn of_path(path: &str) -> Option<&'static str> {
    let (folder, name) = path.rsplit_once('/').unwrap_or(("", path));
    name.split('.').find_map(of_word).or_else(|| of_folder(folder))
}

/// Returns the environment that a folder tells.
pub(crate) fn of_folder(folder: &str) -> Option<&'static str> {
    folder.rsplit('/').find_map(of_word)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_tell_their_environment() {
        for (path, expected) in [
            (".env.production", Some("production")),
            ("prod.env", Some("production")),
            ("deploy/staging/.env", Some("staging")),
            ("staging/.env.prod", Some("production")),
            (".env", None),
            ("backend/.env", None),
            ("products/.env", None),
        ] {
            assert_eq!(of_path(path), expected, "{path}");
        }
    }
}
