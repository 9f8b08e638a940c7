//! What runs of the Compose projects of this machine, as the labels of their containers tell. No value is asked for.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use keywheel_driver::CallError;
use serde::Deserialize;

use super::engine::{self, Engine};
use super::usual_socket;

/// A Compose project of which containers are there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Running {
    /// Its name.
    pub project: String,
    /// The folder in which Compose was run.
    pub folder: PathBuf,
    /// The Compose files that its containers were made from; several lists where that was not done at once.
    pub files: BTreeSet<Vec<PathBuf>>,
    /// How many containers each service has, running or not; those of `compose run` do not count.
    pub containers: BTreeMap<String, usize>,
}

/// Asks the container engine that `docker` itself would ask; nothing where there is none.
///
/// # Errors
/// A [`CallError`] that names the engine, where it is there and does not answer.
pub async fn running() -> Result<Vec<Running>, CallError> {
    let socket = usual_socket();
    match socket.exists() {
        true => Ok(by_project(Engine::at(&socket).labels().await?)),
        false => Ok(Vec::new()),
    }
}

/// The labels of one container.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct Labelled {
    #[serde(default)]
    labels: BTreeMap<String, String>,
}

fn by_project(containers: Vec<Labelled>) -> Vec<Running> {
    let mut found: BTreeMap<(String, PathBuf), Running> = BTreeMap::new();
    for Labelled { labels } in containers {
        let label = |name: &str| labels.get(name).cloned();
        let is_one_off = label(engine::ONE_OFF).is_some_and(|is| is.eq_ignore_ascii_case("true"));
        let (Some(project), Some(folder), Some(service)) =
            (label(engine::PROJECT), label(engine::FOLDER), label(engine::SERVICE))
        else {
            continue;
        };
        if is_one_off {
            continue;
        }
        let folder = PathBuf::from(folder);
        let one = found.entry((project.clone(), folder.clone())).or_insert_with(|| Running {
            project,
            folder: folder.clone(),
            files: BTreeSet::new(),
            containers: BTreeMap::new(),
        });
        *one.containers.entry(service).or_default() += 1;
        let files = label(engine::FILES).unwrap_or_default();
        let files = files.split(',').filter(|file| !file.is_empty());
        let _: bool = one.files.insert(files.map(|file| folder.join(file)).collect());
    }
    found.into_values().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labelled(project: &str, service: &str, one_off: &str) -> Labelled {
        let labels = [
            (engine::PROJECT, project),
            (engine::FOLDER, "/srv/shop"),
            (engine::SERVICE, service),
            (engine::ONE_OFF, one_off),
            (engine::FILES, "/srv/shop/compose.yml,more.yml"),
        ];
        Labelled { labels: labels.map(|(name, text)| (name.into(), text.into())).into() }
    }

    #[test]
    fn containers_are_counted_by_project_and_service() {
        let containers = vec![
            labelled("shop", "backend", "False"),
            labelled("shop", "backend", "False"),
            labelled("shop", "backend", "True"),
            labelled("other", "backend", "False"),
            Labelled { labels: BTreeMap::new() },
        ];
        let found = by_project(containers);
        let counts: Vec<_> =
            found.iter().map(|one| (one.project.as_str(), one.containers["backend"])).collect();
        assert_eq!(counts, [("other", 1), ("shop", 2)]);
        let files = ["/srv/shop/compose.yml", "/srv/shop/more.yml"].map(PathBuf::from);
        assert_eq!(found[1].files, BTreeSet::from([files.to_vec()]));
    }
}
