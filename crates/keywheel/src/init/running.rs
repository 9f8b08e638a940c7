//! What runs of the projects that were found, as the labels of their containers tell: under which name, from which files, and
//! how many containers each service has. It counts before what the files say. No value is asked for.

use std::path::Path;
use std::time::Duration;

use keywheel_drivers::workload::compose_service::{Running, running};

use super::Warning;
use super::compose::Project;
use super::walk::joined;

/// How long a container engine may take to answer.
const WITHIN: Duration = Duration::from_secs(5);

/// Looks at what runs. `named` says how Compose calls a project by itself.
pub(crate) async fn look(
    root: &Path,
    projects: &mut [Project],
    named: impl Fn(&Project) -> String,
    warnings: &mut Vec<Warning>,
) {
    if projects.is_empty() {
        return;
    }
    let found = match tokio::time::timeout(WITHIN, running()).await {
        Ok(Ok(found)) => found,
        Ok(Err(error)) => return warnings.push(unasked(&error.to_string())),
        Err(_) => return warnings.push(unasked("no answer in time")),
    };
    for project in projects {
        let folder = root.join(&project.folder);
        let folder = folder.canonicalize().unwrap_or(folder);
        let here: Vec<&Running> = found.iter().filter(|one| one.folder == folder).collect();
        match here[..] {
            [] => {}
            [one] => warnings.extend(take(project, one, root, &named(project))),
            _ => warnings.push(Warning::of(
                &project.file,
                "runs under several project names; what runs is left out of the proposal",
            )),
        }
    }
}

fn unasked(why: &str) -> Warning {
    let message = format!(
        "what runs could not be asked for ({why}); numbers of containers are those of the Compose files"
    );
    Warning { file: None, line: None, message }
}

/// Lays what runs over what a file says.
fn take(project: &mut Project, one: &Running, root: &Path, named: &str) -> Option<Warning> {
    project.runs_as = (one.project != named).then(|| one.project.clone());
    for service in &mut project.services {
        let count = one.containers.get(&service.name).and_then(|count| i64::try_from(*count).ok());
        service.replicas = count.map_or(service.replicas, |count| (count > 1).then_some(count));
    }
    let inside = |file: &Path| {
        let file = file.canonicalize().unwrap_or_else(|_| file.to_owned());
        file.strip_prefix(root).ok().and_then(|file| file.to_str()).map(str::to_owned)
    };
    let lists = one.files.iter().map(|files| files.iter().map(|file| inside(file)).collect());
    let mut lists: Vec<Option<Vec<String>>> = lists.collect();
    match (lists.pop(), lists.is_empty()) {
        (Some(Some(files)), true) if files.first() == Some(&project.file) => {
            project.overs = files[1..].to_vec();
            None
        }
        _ => Some(Warning::of(
            &project.file,
            "its containers were made from other Compose files than this one; `overrides` must name them all",
        )),
    }
}

/// Returns how Compose calls the project of a folder that says no name: letters and digits of the folder's own name in lower
/// case, with `-` and `_`.
pub(crate) fn name_of_folder(root: &Path, folder: &str) -> String {
    let place = root.join(folder);
    let name = place.file_name().map(|name| name.to_string_lossy().to_lowercase());
    let kept = |c: &char| c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, '-' | '_');
    let name: String = name.unwrap_or_default().chars().filter(kept).collect();
    name.trim_start_matches(['-', '_']).into()
}

/// The file in which Compose looks for `COMPOSE_PROJECT_NAME`.
pub(crate) fn env_file(project: &Project) -> String {
    joined(&project.folder, ".env")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_names_its_project_as_compose_does() {
        let name = |folder: &str| name_of_folder(Path::new("/srv/My Shop"), folder);
        assert_eq!((name("").as_str(), name("api/_Web.App").as_str()), ("myshop", "webapp"));
    }
}
