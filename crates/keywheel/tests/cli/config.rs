use crate::{folder_with, keywheel};

const FILE: &str = r#"project: shop
policies:
  default: { soak: 2h }
environments:
  staging:
    stores: { app: { env_file: { path: staging.env } } }
    workloads: { backend: { process: { replicas: [{ pid_file: s.pid }], shows: environ } } }
  production:
    protected: true
    stores: { app: { env_file: { path: production.env } } }
    workloads: { backend: { process: { replicas: [{ pid_file: p.pid }], shows: environ } } }
secrets:
  api:
    issuer: { random: { length: { by_env: { staging: 30, production: 64 } } } }
    stores: { app: API_KEY }
    read_by: [backend]
"#;

#[test]
fn each_value_is_shown_with_its_line() {
    let folder = folder_with(FILE);
    let ran = keywheel(folder.path(), &["config", "show", "-e", "production"]);
    insta::assert_snapshot!(ran.whole(), @r"
    exit 0
    --- stdout
    project shop

    environment production · protected
      project                                        shop                      keywheel.yaml:1:10
      policies.default.soak                          2h                        keywheel.yaml:3:20
      protected                                      true                      keywheel.yaml:9:16
      stores.app.env_file.path                       production.env            keywheel.yaml:10:40
      workloads.backend.process.replicas.1.pid_file  p.pid                     keywheel.yaml:11:63
      workloads.backend.process.shows                environ                   keywheel.yaml:11:80
      secrets.api.issuer.random.length               64                        keywheel.yaml:14:70
      secrets.api.stores.app                         API_KEY                   keywheel.yaml:15:20
      secrets.api.read_by.1                          backend                   keywheel.yaml:16:15
      secrets.api.(in force).policy                  default
      secrets.api.(in force).strategy                overlap
      secrets.api.(in force).cryptoperiod            90 d
      secrets.api.(in force).soak                    2 h
      secrets.api.(in force).rollback                7 d
      secrets.api.(in force).remind                  30 d
      secrets.api.(in force).watch                   1 h
      secrets.api.(in force).gate_limit              7 d
      secrets.api.(in force).longest_move            51 min 30 s
    --- stderr
    ");
}

#[test]
fn programs_get_the_same() {
    let folder = folder_with(FILE);
    let json = keywheel(folder.path(), &["config", "show", "--output", "json"]).json();
    assert_eq!((&json["schema"], &json["project"]), (&1.into(), &"shop".into()));
    assert_eq!(json["environments"].as_array().unwrap().len(), 2);
    let values = json["environments"][0]["values"].as_array().unwrap();
    let length =
        values.iter().find(|value| value["path"] == "secrets.api.issuer.random.length").unwrap();
    assert_eq!(
        (&length["value"], &length["line"], &length["column"]),
        (&30.into(), &14.into(), &54.into())
    );
}

#[test]
fn the_nearest_file_above_is_read() {
    let folder = folder_with(FILE);
    let below = folder.path().join("a/b");
    std::fs::create_dir_all(&below).unwrap();
    assert_eq!(keywheel(&below, &["config", "show"]).code, Some(0));
}

#[test]
fn a_missing_file_is_told() {
    let folder = tempfile::tempdir().unwrap();
    insta::assert_snapshot!(keywheel(folder.path(), &["config", "show"]).whole(), @r"
    exit 1
    --- stdout
    --- stderr
    error: there is no `keywheel.yaml` here or in a folder above
      hint: let `keywheel init` propose one (`keywheel explain K0101` shows the smallest), or name one with `--config`
      code: K0101 (`keywheel explain K0101`)
    ");
    insta::assert_snapshot!(keywheel(folder.path(), &["config", "show", "-c", "other.yaml"]).whole(), @r"
    exit 1
    --- stdout
    --- stderr
    error: `other.yaml` cannot be read
      caused by: entity not found
      code: K0101 (`keywheel explain K0101`)
    ");
}

#[test]
fn problems_go_to_stderr_one_after_another() {
    let wrong =
        FILE.replace("[backend]", "[backned]").replace("soak: 2h", "soak: 2h, cryptoperiod: 3d");
    let folder = folder_with(&wrong);
    insta::assert_snapshot!(keywheel(folder.path(), &["config", "show"]).whole(), @r"
    exit 1
    --- stdout
    --- stderr
    error: keywheel.yaml:3:24: `secrets.api`: a cryptoperiod of 3 d is shorter than soak, rollback window and the longest move together (7 d 2 h)
      hint: lengthen it, shorten `soak` or `rollback`, or let the next rotation end the window: `next: close_window`
      code: K0112 (`keywheel explain K0112`)
    error: keywheel.yaml:16:15: `secrets.api.read_by` names a workload that is not declared for environment `staging`
      hint: did you mean `backend`?
      code: K0109 (`keywheel explain K0109`)
    error: keywheel.yaml:16:15: `secrets.api.read_by` names a workload that is not declared for environment `production`
      hint: did you mean `backend`?
      code: K0109 (`keywheel explain K0109`)
    ");
    let ran = keywheel(folder.path(), &["config", "show", "--output", "json"]);
    assert_eq!((ran.code, ran.stdout.as_str()), (Some(1), ""));
    let json: serde_json::Value = serde_json::from_str(&ran.stderr).unwrap();
    assert_eq!((&json["schema"], &json["errors"][0]["code"]), (&1.into(), &"K0112".into()));
}

#[test]
fn an_unknown_environment_is_told() {
    let folder = folder_with(FILE);
    insta::assert_snapshot!(keywheel(folder.path(), &["config", "show", "-e", "prodction"]).whole(), @r"
    exit 1
    --- stdout
    --- stderr
    error: environment `prodction` is not declared
      hint: did you mean `production`?
      code: K0109 (`keywheel explain K0109`)
    ");
}

#[test]
fn a_file_that_is_not_text_is_told() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("keywheel.yaml"), [0xff, 0xfe, 0x00]).unwrap();
    insta::assert_snapshot!(keywheel(folder.path(), &["config", "show"]).whole(), @r"
    exit 1
    --- stdout
    --- stderr
    error: `keywheel.yaml` is not UTF-8
      code: K0102 (`keywheel explain K0102`)
    ");
}

#[test]
fn h119_what_looks_like_a_pasted_credential_is_not_shown() {
    for pasted in ["sk-proj-7f3a9c51e2b84d60", "postgres://app:hunter2@db/app"] {
        let folder =
            folder_with(&FILE.replace("  api:\n", &format!("  api:\n    owner: \"{pasted}\"\n")));
        let ran = keywheel(folder.path(), &["config", "show"]);
        assert_eq!(ran.code, Some(0));
        assert!(!ran.stdout.contains(pasted) && ran.stdout.contains("(hidden"), "{}", ran.stdout);
    }
}
