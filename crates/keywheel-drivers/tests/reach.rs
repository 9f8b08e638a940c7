//! A database in a container that publishes no port is reached at the container's own address.

use keywheel_core::time::Timestamp;
use keywheel_driver::probe::{Asked, Health};
use keywheel_drivers::{Build, Context, ProbeConfig};
use keywheel_ground::docker::{Docker, IMAGE};
use keywheel_ground::postgres::Postgres;
use serde_json::json;

const PASSWORD: &str = "kwcanary-reach-root";

#[test]
fn a_database_that_publishes_no_port_is_reached_in_its_container() {
    let docker = match Docker::start() {
        Ok(docker) => docker,
        Err(why) => return println!("skipped: Docker ({why})"),
    };
    docker.docker(&["network", "create", "shop"]);
    let gateway = ["network", "inspect", "shop", "--format", "{{(index .IPAM.Config 0).Gateway}}"];
    let gateway = docker.docker(&gateway).trim().to_owned();
    let addresses = format!("listen_addresses=127.0.0.1,{gateway}");
    let server = match Postgres::start_with(PASSWORD, None, &["fsync=off", &addresses]) {
        Ok(server) => server,
        Err(why) => return println!("skipped: PostgreSQL ({why})"),
    };
    let rules = server.socket().join("data/pg_hba.conf");
    let known = std::fs::read_to_string(&rules).unwrap();
    std::fs::write(&rules, format!("{known}host all all {gateway}/16 scram-sha-256\n")).unwrap();
    server.reload();

    // The container passes on what it is sent: for whoever connects it is the database.
    let folder = tempfile::TempDir::new().unwrap();
    let root = folder.path().canonicalize().unwrap();
    let run = |name: &str| {
        let label = format!("com.docker.compose.project.working_dir={}", root.display());
        let of_service = ["--label", "com.docker.compose.service=db", "--label", &label];
        let (name, port) = (["run", "-d", "--name", name], server.port().to_string());
        let passes_on = ["/bin/busybox", "nc", "-ll", "-p", "5432", "-e", "/bin/busybox", "nc"];
        let rest = [&["--network", "shop", IMAGE][..], &passes_on, &[&gateway, &port]].concat();
        docker.docker(&[&name[..], &of_service, &rest].concat());
    };
    std::fs::write(root.join("url"), format!("postgresql://postgres:{PASSWORD}@db:5432/postgres"))
        .unwrap();
    let service = json!({ "file": "compose.yml", "service": "db", "socket": docker.socket() });
    let probe =
        json!({ "sql": { "url": { "file": "url" }, "reach": { "compose_service": service } } });
    let probe: ProbeConfig = serde_json::from_value(probe).unwrap();
    let probe = probe.build(&Context::at(&root)).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let now = Timestamp::from_millis(0);
    let ask = || runtime.block_on(probe.ask(&Asked { began_at: now, now }));

    let none = ask().err().unwrap().to_string();
    assert!(none.contains("service `db` has 0 running containers"), "{none}");
    run("db-1");
    let answered = (0..50).any(|_| {
        std::thread::sleep(std::time::Duration::from_millis(100));
        ask() == Ok(Health::Green)
    });
    assert!(answered, "{:?}", ask());
    run("db-2");
    let two = ask().err().unwrap().to_string();
    assert!(two.contains("service `db` has 2 running containers"), "{two}");
}
