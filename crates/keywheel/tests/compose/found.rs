//! What `init` learns from the containers that run.

use super::*;

#[test]
fn init_counts_the_containers_that_run_under_whatever_name() {
    let Some(project) = Project::begin() else { return };
    let name = project.named();
    let secret = "JWT_SECRET=kwcanary-signs-the-sessions-of-the-shop\n";
    project.write(".env", &format!("APP_KEY={OLD}\n{secret}{name}"));
    let socket = format!("unix://{}", project.ground.socket().display());
    let init = |engine: Option<&str>| {
        let mut init = Command::new(env!("CARGO_BIN_EXE_keywheel"));
        init.args(["init", "--dry-run", "--config"]).arg(project.path().join("new.yaml"));
        match engine {
            Some(engine) => init.env("DOCKER_HOST", engine),
            None => init.env("DOCKER_HOST", "unix:///nowhere"),
        };
        let Output { status, stdout, stderr } = init.output().unwrap();
        let said = String::from_utf8([stdout, stderr].concat()).unwrap();
        assert!(status.success() && !said.contains("kwcanary"), "{said}");
        said
    };
    let backend = "compose_service: { file: docker-compose.yml, service: backend";
    let said = init(Some(&socket));
    assert!(said.contains(&format!("{backend}, replicas: 2 }}")), "{said}");
    let said = init(None);
    assert!(said.contains(&format!("{backend} }}")), "nothing that runs is known: {said}");
    // Compose finds another name by itself now than the one that they run under.
    project.write(".env", &format!("APP_KEY={OLD}\n{secret}COMPOSE_PROJECT_NAME=another\n"));
    let said = init(Some(&socket));
    assert!(
        said.contains(&format!("{backend}, project: {}, replicas: 2", project.name())),
        "{said}"
    );
}
