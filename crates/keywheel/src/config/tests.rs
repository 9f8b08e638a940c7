//! What a wrong file is told, and what it is never told.

use std::path::Path;

use keywheel_core::plan::{LoginPart, Part, UrlPart};
use keywheel_core::secret::{Field, SecretName};
use keywheel_core::strategy::Strategy;
use keywheel_core::time::Span;
use proptest::prelude::*;

use super::Config;
use super::problem::Problem;
use crate::code;
use crate::output::Failure;

const ONE: &str = r#"
requires: ">=0.1"
project: shop
policies:
  critical: { cryptoperiod: 90d, soak: 24h, rollback: 7d, require: [owner] }
stores:
  app: { env_file: { path: backend/.env } }
  cache: { file: { path: run/cache.key } }
workloads:
  backend:
    process: { replicas: [{ pid_file: run/backend.pid }], shows: environ }
    probes: [{ http: { url: "http://127.0.0.1:3000/health", header: { authorization: { env: PROBE_TOKEN } } } }]
    reads: [app]
  worker:
    process: { replicas: [{ pid_file: run/worker.pid }], shows: start }
secrets:
  session:
    policy: critical
    owner: platform@example.com
    issuer: { random: { length: 64 } }
    strategy: { keyring: { longest_token: 15m } }
    stores: { app: { SESSION_SECRET: current, SESSION_SECRET_ALSO_ACCEPTED: also_accepted } }
    read_by: [backend]
  cache:
    issuer: random
    stores: { cache: value }
    read_by: nobody
    because: read by a program on another machine
"#;

const TWO: &str = r#"
project: shop
environments:
  staging:
    stores: { app: { env_file: { path: staging.env } } }
    workloads: { backend: { process: { replicas: [{ pid_file: run/s.pid }], shows: environ } } }
  production:
    protected: true
    after: { environment: staging, within: 14d }
    stores: { app: { env_file: { path: production.env } } }
    workloads: { backend: { process: { replicas: [{ pid_file: run/p.pid }], shows: environ } } }
secrets:
  api:
    issuer: { random: { length: { by_env: { staging: 30, production: 64 } } } }
    stores: { app: { by_env: { staging: API_KEY_STAGING, production: API_KEY } } }
    read_by: [backend]
  only-staging:
    environments: [staging]
    issuer: random
    stores: { app: ONLY }
    read_by: [backend]
"#;

fn parse(text: &str) -> Result<Config, Vec<Problem>> {
    Config::parse(text, Path::new("keywheel.yaml"), Path::new("/srv/shop"))
}

fn parsed(text: &str) -> Config {
    parse(text).unwrap_or_else(|problems| panic!("{problems:?}"))
}

/// Replaces one part of a file and returns what is said about it.
fn told(file: &str, part: &str, with: &str) -> String {
    assert_eq!(file.matches(part).count(), 1, "`{part}` must stand once");
    problems(&file.replace(part, with))
}

fn problems(text: &str) -> String {
    let problems = parse(text).err().expect("the file is refused");
    let failures = problems.into_iter().map(|problem| problem.failure(Path::new("keywheel.yaml")));
    Failure::of_all(failures).unwrap().text(false)
}

#[test]
fn a_file_with_one_environment_is_read() {
    let config = parsed(ONE);
    let environment = config.environment("default").unwrap();
    assert_eq!((config.project.as_str(), environment.protected), ("shop", false));
    let session = &environment.secrets[0];
    let keyring = Strategy::Keyring { longest_token: Span::minutes(15), skew: Span::minutes(2) };
    assert_eq!(session.strategy, keyring);
    assert_eq!(session.policy.soak, Span::hours(24));
    assert!(environment.workload("worker").unwrap().reads("app"));
    assert!(!environment.workload("backend").unwrap().reads("cache"));
    assert_eq!(environment.workload("backend").unwrap().probes.len(), 1);
}

#[test]
fn a_slot_holds_a_login_in_the_form_that_its_reader_reads() {
    let pooler = "stores:\n  pooler: { pgbouncer: { auth_file: u.txt, through: [\"postgresql://127.0.0.1/app\"], reload: [\"true\"] } }";
    let with = |stores: &str| {
        ONE.replace("stores: { cache: value }", &format!("stores: {{ {stores} }}"))
            .replace("\nstores:", &format!("\n{pooler}"))
            .replace("read_by: nobody", "read_by: [backend]")
    };
    let slots = "app: { A: { jdbc: login }, B: { libpq: password }, C: { url: userinfo }, D: { pgpass: login }, E: username }";
    let text = with(&format!("{slots}, pooler: {{ app_a: {{ password_of: app_a }} }}"));
    let config = parsed(&text);
    let deliveries = &config.environment("default").unwrap().secrets[1].deliveries;
    let parts = |index: usize| {
        let slots = deliveries[index].slots.iter();
        slots.map(|slot| slot.part.clone()).collect::<Vec<_>>()
    };
    let wanted = [
        Part::Jdbc(LoginPart::Login),
        Part::Libpq(LoginPart::Password),
        Part::Url(UrlPart::Userinfo),
        Part::Pgpass(LoginPart::Login),
        Part::Plain(Field::new("username")),
    ];
    assert_eq!(parts(0), wanted);
    assert_eq!(parts(1), [Part::PasswordOf("app_a".into())], "nobody reads it, and nobody has to");
    for (stores, said) in [
        ("app: { A: { jdbc: login, libpq: login } }", "one of `url`, `jdbc`, `libpq`"),
        ("app: { A: { libpq: username } }", "delivers a user name and no password"),
        ("app: { A: { password_of: app_a } }", "lists no logins"),
        ("app: { A: { jdbc: userinfo } }", "`login`"),
        ("app: password, pooler: { a: { password_of: '' } }", "the name of a login"),
        ("pooler: { app_a: { password_of: app_a } }", "reads none of its stores"),
    ] {
        let told = problems(&with(stores));
        assert!(told.contains(said), "{told}");
    }
}

#[test]
fn by_env_gives_each_environment_its_own() {
    let config = parsed(TWO);
    let slot = |environment| {
        let name = SecretName::new("api", environment).unwrap();
        config.secret(&name).unwrap().1.deliveries[0].slots[0].address.clone()
    };
    assert_eq!((slot("staging"), slot("production")), ("API_KEY_STAGING".into(), "API_KEY".into()));
    let names = |environment| config.environment(environment).unwrap().secrets.len();
    assert_eq!((names("staging"), names("production")), (2, 1));
}

#[test]
fn an_unknown_key_is_named_with_its_place_and_a_suggestion() {
    insta::assert_snapshot!(told(ONE, "    owner:", "    ownr:"), @r"
    error: keywheel.yaml:19:5: key `ownr` is not known in `secrets.session`
      hint: did you mean `owner`?
      code: K0104 (`keywheel explain K0104`)
    ");
    insta::assert_snapshot!(told(ONE, "soak: 24h", "soack: 24h"), @r"
    error: keywheel.yaml:5:34: key `soack` is not known in `policies.critical`
      hint: did you mean `soak`?
      code: K0104 (`keywheel explain K0104`)
    ");
    insta::assert_snapshot!(told(ONE, "project: shop", "project: shop\nmetrics: true"), @r"
    error: keywheel.yaml:4:1: key `metrics` is not known in the file
      hint: known here: `requires`, `project`, `notify`, `policies`, `environments`, `cluster`, `stores`, `workloads`, `secrets`
      code: K0104 (`keywheel explain K0104`)
    ");
    insta::assert_snapshot!(told(ONE, "    probes:", "    prbes:"), @r"
    error: keywheel.yaml:12:5: key `prbes` is not known in `workloads.backend`
      hint: did you mean `probes`?
      code: K0104 (`keywheel explain K0104`)
    ");
    insta::assert_snapshot!(told(ONE, "replicas: [{ pid_file: run/worker.pid }]", "replicas: [{ pidfile: run/worker.pid }]"), @r"
    error: keywheel.yaml:15:29: key `pidfile` is not known in `workloads.worker.process.replicas.1`
      hint: did you mean `pid_file`?
      code: K0104 (`keywheel explain K0104`)
    ");
}

#[test]
fn an_unknown_driver_is_told_as_a_key() {
    insta::assert_snapshot!(told(ONE, "app: { env_file:", "app: { envfile:"), @r"
    error: keywheel.yaml:7:10: key `envfile` is not known in `stores.app`
      hint: did you mean `env_file`?
      code: K0104 (`keywheel explain K0104`)
    ");
    insta::assert_snapshot!(told(ONE, "issuer: random", "issuer: randon"), @r"
    error: keywheel.yaml:25:13: `secrets.cache.issuer` is none of the known choices
      hint: did you mean `random`?
      code: K0105 (`keywheel explain K0105`)
    ");
    insta::assert_snapshot!(told(ONE, "{ random: { length: 64 } }", "{ random: { length: 64 }, opanai: {} }"), @r"
    error: keywheel.yaml:20:39: key `opanai` is not known in `secrets.session.issuer`
      hint: did you mean `openai`?
      code: K0104 (`keywheel explain K0104`)
    ");
    insta::assert_snapshot!(told(ONE, "    process: { replicas: [{ pid_file: run/worker.pid }], shows: start }", "    reads: [app]"), @r"
    error: keywheel.yaml:15:5: `workloads.worker` must be a mapping with one driver of `compose_service`, `process`, `command`, `systemd`, `kubernetes`
      code: K0105 (`keywheel explain K0105`)
    ");
}

#[test]
fn a_value_of_the_wrong_kind_is_told_what_belongs_there() {
    insta::assert_snapshot!(told(ONE, "soak: 24h", "soak: 24hours"), @r"
    error: keywheel.yaml:5:40: `policies.critical.soak`: a length of time is a whole number and one of `ms`, `s`, `m`, `h`, `d`, as in `15m`
      code: K0105 (`keywheel explain K0105`)
    ");
    insta::assert_snapshot!(told(ONE, "soak: 24h", "soak: 24"), @r"
    error: keywheel.yaml:5:40: `policies.critical.soak` must be a length of time as in `24h`, or a mapping of `for` and `brownout`
      code: K0105 (`keywheel explain K0105`)
    ");
    insta::assert_snapshot!(told(ONE, "length: 64", "length: long"), @r"
    error: keywheel.yaml:20:33: `secrets.session.issuer.random.length` must be a whole number from 0 to 65535
      code: K0105 (`keywheel explain K0105`)
    ");
    insta::assert_snapshot!(told(ONE, "length: 64", "length: 640000"), @r"
    error: keywheel.yaml:20:33: `secrets.session.issuer.random.length` must be a whole number from 0 to 65535
      code: K0105 (`keywheel explain K0105`)
    ");
    insta::assert_snapshot!(told(ONE, "length: 64", "length: -1"), @r"
    error: keywheel.yaml:20:33: `secrets.session.issuer.random.length` must be a whole number from 0 to 65535
      code: K0105 (`keywheel explain K0105`)
    ");
    insta::assert_snapshot!(told(ONE, "reads: [app]", "reads: app"), @r"
    error: keywheel.yaml:13:12: `workloads.backend.reads` must be a list
      code: K0105 (`keywheel explain K0105`)
    ");
    insta::assert_snapshot!(told(ONE, "require: [owner]", "require: [ownr]"), @r"
    error: keywheel.yaml:5:69: `policies.critical.require.1` is none of the known choices
      hint: did you mean `owner`?
      code: K0105 (`keywheel explain K0105`)
    ");
    insta::assert_snapshot!(told(ONE, "project: shop", "project: 12"), @r"
    error: keywheel.yaml:3:10: `project` must be text (put it in quotes)
      code: K0105 (`keywheel explain K0105`)
    ");
    insta::assert_snapshot!(told(ONE, "project: shop", "project: my shop"), @r"
    error: keywheel.yaml:3:1: `project` must be a name: 1 to 64 letters, digits, `-` or `_`
      code: K0105 (`keywheel explain K0105`)
    ");
    insta::assert_snapshot!(told(ONE, "env_file: { path: backend/.env }", "env_file: backend/.env"), @r"
    error: keywheel.yaml:7:20: `stores.app.env_file` must be a mapping
      code: K0105 (`keywheel explain K0105`)
    ");
    insta::assert_snapshot!(told(ONE, "read_by: nobody", "read_by: worker"), @r"
    error: keywheel.yaml:27:14: `secrets.cache.read_by` must be a list of workloads, or `nobody` (and `because`)
      code: K0105 (`keywheel explain K0105`)
    ");
}

#[test]
fn a_missing_key_is_told_at_the_key_above() {
    insta::assert_snapshot!(told(ONE, "    issuer: random\n", ""), @r"
    error: keywheel.yaml:24:3: key `issuer` is missing in `secrets.cache`
      code: K0106 (`keywheel explain K0106`)
    ");
    insta::assert_snapshot!(told(ONE, "project: shop\n", ""), @r"
    error: keywheel.yaml:2:1: key `project` is missing in the file
      code: K0106 (`keywheel explain K0106`)
    ");
    insta::assert_snapshot!(told(ONE, "{ longest_token: 15m }", "{}"), @r"
    error: keywheel.yaml:21:17: key `longest_token` is missing in `secrets.session.strategy.keyring`
      code: K0106 (`keywheel explain K0106`)
    ");
}

#[test]
fn what_is_no_yaml_is_told_by_its_place() {
    insta::assert_snapshot!(told(ONE, "  critical:", "\tcritical:"), @r"
    error: keywheel.yaml:5:2: a tab stands where YAML wants spaces
      hint: indent with spaces
      code: K0102 (`keywheel explain K0102`)
    ");
    insta::assert_snapshot!(told(ONE, "project: shop", "project: shop\nproject: shop"), @r"
    error: keywheel.yaml:4:1: key `project` stands twice in one mapping
      code: K0103 (`keywheel explain K0103`)
    ");
}

#[test]
fn names_that_are_not_declared_are_told_with_a_suggestion_and_not_repeated() {
    insta::assert_snapshot!(told(ONE, "    stores: { cache: value }", "    stores: { cahce: value }"), @r"
    error: keywheel.yaml:26:15: `secrets.cache.stores.cahce` names a store that is not declared for environment `default`
      hint: did you mean `cache`?
      code: K0109 (`keywheel explain K0109`)
    ");
    insta::assert_snapshot!(told(ONE, "read_by: [backend]", "read_by: [worker, bckend]"), @r"
    error: keywheel.yaml:23:23: `secrets.session.read_by` names a workload that is not declared for environment `default`
      hint: did you mean `backend`?
      code: K0109 (`keywheel explain K0109`)
    ");
    insta::assert_snapshot!(told(ONE, "policy: critical", "policy: critcal"), @r"
    error: keywheel.yaml:18:13: `secrets.session.policy` names a policy that is not declared
      hint: did you mean `critical`?
      code: K0109 (`keywheel explain K0109`)
    ");
    insta::assert_snapshot!(told(ONE, "reads: [app]", "reads: [redis]"), @r"
    error: keywheel.yaml:13:13: `workloads.backend.reads` names a store that is not declared for environment `default`
      hint: declared: `app`, `cache`
      code: K0109 (`keywheel explain K0109`)
    error: keywheel.yaml:22:15: `secrets.session.stores.app` is read by none of the workloads in `read_by`
      code: K0113 (`keywheel explain K0113`)
    error: keywheel.yaml:23:5: `secrets.session` is read by workload `backend`, which reads none of its stores
      hint: add a store to `workloads.backend.reads`, or take the workload out of `read_by`
      code: K0113 (`keywheel explain K0113`)
    ");
    insta::assert_snapshot!(told(TWO, "after: { environment: staging", "after: { environment: production"), @r"
    error: keywheel.yaml:9:5: `environments.production.after` names its own environment
      code: K0109 (`keywheel explain K0109`)
    ");
    insta::assert_snapshot!(told(TWO, "environments: [staging]", "environments: [stagin]"), @r"
    error: keywheel.yaml:18:20: `secrets.only-staging.environments` names an environment that is not declared
      hint: did you mean `staging`?
      code: K0109 (`keywheel explain K0109`)
    ");
}

#[test]
fn h61_two_secrets_that_claim_one_slot_are_refused() {
    let second = "    stores: { app: SESSION_SECRET }\n    read_by: [worker]\n";
    let nobody = "    stores: { cache: value }\n    read_by: nobody\n    because: read by a program on another machine\n";
    insta::assert_snapshot!(told(ONE, nobody, second), @r"
    error: keywheel.yaml:26:15: `cache@default` claims a slot that `session@default` owns
      hint: the first claim is at line 22; each slot has one owner
      code: K0110 (`keywheel explain K0110`)
    ");
    // The same file under another name, and from another environment.
    let twice =
        ONE.replace("run/cache.key", "backend/./.env").replace("{ file: {", "{ env_file: {");
    let twice = twice.replace("cache: value", "cache: SESSION_SECRET");
    insta::assert_snapshot!(problems(&twice), @r"
    error: keywheel.yaml:26:15: `cache@default` claims a slot that `session@default` owns
      hint: the first claim is at line 22; each slot has one owner
      code: K0110 (`keywheel explain K0110`)
    ");
    let across = TWO.replace("staging.env", "production.env").replace("API_KEY_STAGING", "API_KEY");
    insta::assert_snapshot!(problems(&across), @r"
    error: keywheel.yaml:15:15: `api@production` claims a slot that `api@staging` owns
      hint: the first claim is at line 15; each slot has one owner
      code: K0110 (`keywheel explain K0110`)
    ");
}

#[test]
fn h83_a_keyring_needs_a_slot_for_the_second_value_in_each_store() {
    let also = ", SESSION_SECRET_ALSO_ACCEPTED: also_accepted";
    insta::assert_snapshot!(told(ONE, also, ""), @r"
    error: keywheel.yaml:22:15: `secrets.session.stores.app` has no `also_accepted` slot, so readers cannot accept two values
      hint: let the readers accept a second value from a second slot, or choose `strategy: cutover` with `accept: [sessions_end]`
      code: K0111 (`keywheel explain K0111`)
    ");
    insta::assert_snapshot!(told(ONE, also, ", OTHER: current, ALSO: also_accepted"), @r"
    error: keywheel.yaml:22:15: `secrets.session.stores.app` must have exactly one `current` and one `also_accepted` slot
      code: K0111 (`keywheel explain K0111`)
    ");
    insta::assert_snapshot!(told(ONE, also, ", ALSO: also_acepted"), @r"
    error: keywheel.yaml:22:53: `secrets.session.stores.app.ALSO` is none of the known choices
      hint: did you mean `also_accepted`?
      code: K0105 (`keywheel explain K0105`)
    ");
    insta::assert_snapshot!(told(ONE, "{ keyring: { longest_token: 15m } }", "overlap"), @r"
    error: keywheel.yaml:22:15: `secrets.session.stores.app` has an `also_accepted` slot, which only `strategy: keyring` fills
      code: K0111 (`keywheel explain K0111`)
    ");
}

#[test]
fn logins_that_take_turns_alternate_and_their_names_are_delivered() {
    let logins = ONE
        .replace(
            "{ random: { length: 64 } }",
            "{ postgres: { admin_url: { env: X }, owner: shop, logins: [shop_a, shop_b] } }",
        )
        .replace("    strategy: { keyring: { longest_token: 15m } }\n", "")
        .replace(
            "SESSION_SECRET: current, SESSION_SECRET_ALSO_ACCEPTED: also_accepted",
            "PGPASSWORD: password, PGUSER: username",
        );
    let parsed = parse(&logins).unwrap_or_else(|_| panic!("{}", problems(&logins)));
    let (_, session) = parsed.secret(&"session@default".parse().unwrap()).unwrap();
    assert_eq!(session.strategy, Strategy::Alternate);
    insta::assert_snapshot!(told(&logins, ", PGUSER: username", ""), @r"
    error: keywheel.yaml:21:15: `secrets.session.stores.app` delivers a password without the user name, and the logins take turns
      hint: add a slot for it, as in `PGUSER: username`
      code: K0108 (`keywheel explain K0108`)
    ");
}

#[test]
fn what_ends_by_itself_is_leased_and_nothing_else_is() {
    let leased = ONE
        .replace(
            "{ random: { length: 64 } }",
            "{ vault_dynamic: { address: \"https://vault\", auth: { token: { env: X } }, path: database/creds/shop } }",
        )
        .replace("    strategy: { keyring: { longest_token: 15m } }\n", "")
        .replace(
            "SESSION_SECRET: current, SESSION_SECRET_ALSO_ACCEPTED: also_accepted",
            "PGPASSWORD: password, PGUSER: username",
        );
    let parsed = parse(&leased).unwrap_or_else(|_| panic!("{}", problems(&leased)));
    let (_, session) = parsed.secret(&"session@default".parse().unwrap()).unwrap();
    assert_eq!(session.strategy, Strategy::Lease);
    let overlap = leased.replace("    issuer:", "    strategy: overlap\n    issuer:");
    let said = problems(&overlap);
    assert!(said.contains("end by themselves, which leaves no soak"), "{said}");
    let cutover =
        leased.replace("    issuer:", "    strategy: cutover\n    accept: [outage]\n    issuer:");
    assert!(problems(&cutover).contains("end by themselves"));
    let random = ONE.replace("{ keyring: { longest_token: 15m } }", "lease").replace(
        "SESSION_SECRET: current, SESSION_SECRET_ALSO_ACCEPTED: also_accepted",
        "SESSION_SECRET: current",
    );
    let said = problems(&random);
    assert!(said.contains("what its issuer makes does not end by itself"), "{said}");
}

#[test]
fn a_list_of_logins_has_a_slot_for_each_of_two_that_take_turns() {
    let pooler = "  pooler: { pgbouncer: { auth_file: u.txt, through: [\"postgresql://127.0.0.1/app\"], reload: [\"true\"] } }";
    let with = |slots: &str| {
        let issuer = "{ postgres: { admin_url: { env: X }, owner: shop, logins: [a, b] } }";
        ONE.replace("{ random: { length: 64 } }", issuer)
            .replace("    strategy: { keyring: { longest_token: 15m } }\n", "")
            .replace(
                "{ SESSION_SECRET: current, SESSION_SECRET_ALSO_ACCEPTED: also_accepted }",
                &format!("{{ url: {{ url: userinfo }} }}, pooler: {{ {slots} }}"),
            )
            .replace("\nstores:", &format!("\nstores:\n{pooler}"))
    };
    let both = with("a: { password_of: a }, b: { password_of: b }");
    assert!(parse(&both).is_ok(), "{}", problems(&both));
    for slots in ["a: password", "a: { password_of: a }", "a: { password_of: a }, b: password"] {
        let told = problems(&with(slots));
        assert!(told.contains("needs one slot for each of the two that take turns"), "{told}");
    }
}

#[test]
fn h83_a_cutover_says_what_loss_is_accepted() {
    let also = ONE.replace(", SESSION_SECRET_ALSO_ACCEPTED: also_accepted", "");
    let cutover = also.replace("{ keyring: { longest_token: 15m } }", "cutover");
    insta::assert_snapshot!(problems(&cutover), @r"
    error: keywheel.yaml:21:5: `secrets.session` is cut over, and requests may fail meanwhile
      hint: add `accept: [outage]` if that loss is right
      code: K0111 (`keywheel explain K0111`)
    ");
    let accepted = cutover.replace("strategy: cutover", "strategy: cutover\n    accept: [outage]");
    assert!(parse(&accepted).is_ok());
}

#[test]
fn h83_a_signing_secret_never_overlaps_and_ends_sessions_only_where_that_was_accepted() {
    let signing = ONE.replace("{ random: { length: 64 } }", "jwt_secret");
    assert!(parse(&signing).is_ok());
    let one_slot = signing.replace(", SESSION_SECRET_ALSO_ACCEPTED: also_accepted", "");
    let strategy =
        |text: &str| one_slot.replace("strategy: { keyring: { longest_token: 15m } }", text);
    insta::assert_snapshot!(problems(&strategy("strategy: overlap")), @r"
    error: keywheel.yaml:21:5: `secrets.session` signs sessions, and this strategy would end those of its previous version
      hint: use `strategy: { keyring: … }`, or `strategy: cutover` with `accept: [sessions_end]`
      code: K0111 (`keywheel explain K0111`)
    ");
    insta::assert_snapshot!(problems(&strategy("strategy: cutover\n    accept: [outage]")), @r"
    error: keywheel.yaml:21:5: `secrets.session` signs sessions, and a cutover ends those of its previous version
      hint: use `strategy: { keyring: … }`, or add `accept: [sessions_end]` if that loss is right
      code: K0111 (`keywheel explain K0111`)
    ");
    assert!(parse(&strategy("strategy: cutover\n    accept: [sessions_end]")).is_ok());
}

#[test]
fn a_brown_out_is_asked_for_beside_the_length_of_soak_and_fits_into_it() {
    let policy = |soak: &str| {
        let config = parse(&ONE.replace("soak: 24h", soak)).unwrap();
        let policy = &config.environments[0].secrets[0].policy;
        (policy.soak, policy.brownout)
    };
    let ten = Some(Span::minutes(10));
    assert_eq!(policy("soak: { for: 2h, brownout: 10m }"), (Span::hours(2), ten));
    assert_eq!(policy("soak: { brownout: 10m }"), (Span::hours(24), ten));
    assert_eq!(policy("soak: { for: 2h }"), (Span::hours(2), None));
    assert_eq!(policy("soak: { brownout: 0s }"), (Span::hours(24), None));
    insta::assert_snapshot!(told(ONE, "soak: 24h", "soak: { for: 1h, brownout: 2h }"), @r"
    error: keywheel.yaml:5:51: `secrets.session`: a brown-out of 2 h does not fit into a soak of 1 h
      code: K0108 (`keywheel explain K0108`)
    ");
    insta::assert_snapshot!(told(ONE, "soak: 24h", "soak: { for: 1h, brown: 2h }"), @r"
    error: keywheel.yaml:5:51: key `brown` is not known in `policies.critical.soak`
      hint: known here: `for`, `brownout`
      code: K0104 (`keywheel explain K0104`)
    ");
}

#[test]
fn a_cryptoperiod_must_outlast_the_retirement() {
    insta::assert_snapshot!(told(ONE, "cryptoperiod: 90d", "cryptoperiod: 8d"), @r"
    error: keywheel.yaml:5:15: `secrets.session`: a cryptoperiod of 8 d is shorter than soak, rollback window and the longest move together (8 d 2 h)
      hint: lengthen it, shorten `soak` or `rollback`, or let the next rotation end the window: `next: close_window`
      code: K0112 (`keywheel explain K0112`)
    ");
    assert!(
        parse(&ONE.replace("cryptoperiod: 90d", "cryptoperiod: 8d, next: close_window")).is_ok()
    );
}

#[test]
fn what_nobody_reads_is_refused() {
    insta::assert_snapshot!(told(ONE, "    because: read by a program on another machine\n", ""), @r"
    error: keywheel.yaml:27:5: `secrets.cache.read_by` is `nobody`, and nothing says why
      hint: add `because: …`
      code: K0113 (`keywheel explain K0113`)
    ");
    insta::assert_snapshot!(told(ONE, "reads: [app]", "reads: [cache]"), @r"
    error: keywheel.yaml:22:15: `secrets.session.stores.app` is read by none of the workloads in `read_by`
      code: K0113 (`keywheel explain K0113`)
    error: keywheel.yaml:23:5: `secrets.session` is read by workload `backend`, which reads none of its stores
      hint: add a store to `workloads.backend.reads`, or take the workload out of `read_by`
      code: K0113 (`keywheel explain K0113`)
    ");
    insta::assert_snapshot!(told(ONE, "    stores: { cache: value }\n    read_by: nobody\n", "    stores: { cache: value, app: CACHE }\n    read_by: [backend]\n"), @r"
    error: keywheel.yaml:26:15: `secrets.cache.stores.cache` is read by none of the workloads in `read_by`
      code: K0113 (`keywheel explain K0113`)
    ");
    insta::assert_snapshot!(told(ONE, "read_by: [backend]", "read_by: []"), @r"
    error: keywheel.yaml:23:14: `secrets.session.read_by` must be a list of workloads, or `nobody` (and `because`)
      code: K0105 (`keywheel explain K0105`)
    ");
}

#[test]
fn by_env_names_every_environment_and_no_other() {
    insta::assert_snapshot!(told(TWO, "{ staging: 30, production: 64 }", "{ staging: 30 }"), @r"
    error: keywheel.yaml:14:35: `by_env` in `secrets.api.issuer.random.length` has no value for environment `production`
      hint: add `production:`, or list the secret's `environments`
      code: K0114 (`keywheel explain K0114`)
    ");
    insta::assert_snapshot!(told(TWO, "{ staging: 30, production: 64 }", "{ stagng: 30, production: 64 }"), @r"
    error: keywheel.yaml:14:45: `by_env` in `secrets.api.issuer.random.length` names environment `stagng`, which is not declared
      hint: did you mean `staging`?
      code: K0114 (`keywheel explain K0114`)
    ");
    insta::assert_snapshot!(told(TWO, "production: 64 } }", "production: 64 }, other: 1 }"), @r"
    error: keywheel.yaml:14:35: `by_env` in `secrets.api.issuer.random.length` must be the only key of its mapping
      code: K0114 (`keywheel explain K0114`)
    ");
    insta::assert_snapshot!(told(TWO, "{ staging: 30, production: 64 }", "30"), @r"
    error: keywheel.yaml:14:35: `by_env` in `secrets.api.issuer.random.length` must be a mapping of environments to values
      code: K0114 (`keywheel explain K0114`)
    ");
    insta::assert_snapshot!(told(TWO, "{ staging: 30, production: 64 }", "{ staging: 30, production: many }"), @r"
    error: keywheel.yaml:14:70: `secrets.api.issuer.random.length` must be a whole number from 0 to 65535
      code: K0105 (`keywheel explain K0105`)
    ");
}

#[test]
fn a_newer_file_is_told_so_before_its_keys_are_looked_at() {
    insta::assert_snapshot!(told(ONE, "\">=0.1\"", "\">=99\"\nnew_key: 1"), @r"
    error: keywheel.yaml:2:11: this is keywheel 0.1.0, and the file requires `>=99`
      hint: install a version that fits
      code: K0115 (`keywheel explain K0115`)
    ");
}

#[test]
fn a_policy_requires_an_owner() {
    insta::assert_snapshot!(told(ONE, "    owner: platform@example.com\n", ""), @r"
    error: keywheel.yaml:17:3: `secrets.session` names no `owner`, and its policy requires one
      code: K0116 (`keywheel explain K0116`)
    ");
}

#[test]
fn a_file_has_one_form() {
    insta::assert_snapshot!(told(TWO, "project: shop", "project: shop\nstores: {}"), @r"
    error: keywheel.yaml:3:1: `stores` stands beside `environments`
      hint: move it into the environments, as `environments.NAME.stores`
      code: K0119 (`keywheel explain K0119`)
    ");
    insta::assert_snapshot!(problems("project: shop\nenvironments: {}\n"), @r"
    error: keywheel.yaml:2:1: `environments` declares no environment
      hint: name one, or leave `environments` out
      code: K0106 (`keywheel explain K0106`)
    ");
}

#[test]
fn a_driver_that_refuses_its_settings_is_told_with_the_line() {
    insta::assert_snapshot!(told(ONE, "length: 64", "length: 8"), @r"
    error: keywheel.yaml:20:5: `secrets.session.issuer`: `length` must be at least 22 (128 bits)
      code: K0117 (`keywheel explain K0117`)
    ");
    insta::assert_snapshot!(told(ONE, "http://127.0.0.1:3000/health", "http://user:CANARYCANARY@127.0.0.1/"), @r"
    error: keywheel.yaml:12:5: `workloads.backend.probes`: `url` must not hold a user name or password
      code: K0117 (`keywheel explain K0117`)
    ");
}

#[test]
fn a_key_that_was_pasted_where_a_reference_belongs_is_refused_and_not_shown() {
    let told = told(ONE, "{ env: PROBE_TOKEN }", "sk-proj-7f3a9c51e2b84d60");
    assert!(!told.contains("7f3a9c51"));
    insta::assert_snapshot!(told, @r"
    error: keywheel.yaml:12:86: `workloads.backend.probes.1.http.header.authorization` holds a value where a reference to one must stand
      hint: put the value elsewhere, replace it if others can read this file, and write `{ env: NAME }`, `{ file: PATH }` or `{ command: [PROGRAM] }`
      code: K0107 (`keywheel explain K0107`)
    ");
}

#[test]
fn every_problem_is_told_in_one_pass() {
    let two =
        ONE.replace("policy: critical", "policy: critcal").replace("cache: value", "redis: value");
    let codes: Vec<_> = parse(&two).err().unwrap().iter().map(|problem| problem.code).collect();
    assert_eq!(codes, [code::UNKNOWN_NAME, code::UNKNOWN_NAME]);
}

/// Something that people paste: never a word, so it may be shown nowhere, not even where a key stands.
const CANARY: &str = "sk-proj-7f3a9c51e2b84d60aa";

/// Puts the canary in the place of one word of a file.
fn with_canary(file: &str, word: usize, quoted: bool) -> Option<String> {
    let is_word = |c: char| c.is_ascii_alphanumeric() || "_-./@\">=:".contains(c);
    let mut words = Vec::new();
    let mut start = None;
    for (index, c) in file.char_indices() {
        match (is_word(c) && c != ':', start) {
            (true, None) => start = Some(index),
            (false, Some(from)) => {
                words.push(from..index);
                start = None;
            }
            _ => {}
        }
    }
    let range = words.get(word % words.len())?.clone();
    let canary = if quoted { format!("\"{CANARY}\"") } else { CANARY.to_owned() };
    Some(format!("{}{canary}{}", &file[..range.start], &file[range.end..]))
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 128, ..ProptestConfig::default() })]

    #[test]
    fn h114_no_error_shows_what_stands_in_the_file(two: bool, first in 0..400_usize, second in 0..400_usize, quoted: bool) {
        let file = if two { TWO } else { ONE };
        let text = with_canary(file, first, quoted).unwrap();
        let text = if second % 3 == 0 { with_canary(&text, second, !quoted).unwrap() } else { text };
        if let Err(problems) = parse(&text) {
            for problem in problems {
                let failure = problem.failure(Path::new("keywheel.yaml"));
                let told = format!("{}{}", failure.text(true), failure.json());
                for part in [CANARY, "7f3a9c51", "e2b84d60"] {
                    prop_assert!(!told.contains(part), "{told}");
                }
            }
        }
    }
}

#[test]
fn h114_a_canary_in_the_place_of_each_word_is_never_shown() {
    for file in [ONE, TWO] {
        for word in 0..220 {
            let text = with_canary(file, word, false).unwrap();
            for problem in parse(&text).err().into_iter().flatten() {
                let told = problem.failure(Path::new("keywheel.yaml")).text(false);
                assert!(!told.contains("7f3a9c51"), "{told}");
            }
        }
    }
}

const CLUSTERS: &str = r#"
project: shop
environments:
  staging:
    cluster: { context: staging-eu, kubeconfig: kube/staging }
    stores: { app: { kubernetes_secret: { namespace: shop, name: api-keys } } }
  production:
    cluster: { context: prod-eu }
    stores:
      app: { kubernetes_secret: { namespace: shop, name: api-keys } }
      other: { kubernetes_secret: { namespace: shop, name: api-keys, cluster: { in_cluster: {} } } }
      file: { env_file: { path: production.env } }
secrets:
  api:
    issuer: random
    stores: { app: api-key }
    read_by: nobody
    because: it is an example
"#;

#[test]
fn the_cluster_of_an_environment_is_that_of_its_drivers() {
    let config = parsed(CLUSTERS);
    let store = |environment: &str, store: &str| {
        let store = config.environment(environment).unwrap().store(store).unwrap();
        serde_json::to_value(&store.config).unwrap()["kubernetes_secret"]["cluster"].clone()
    };
    let staging =
        serde_json::json!({ "context": "staging-eu", "kubeconfig": "/srv/shop/kube/staging" });
    assert_eq!(store("staging", "app"), staging);
    assert_eq!(store("production", "app"), serde_json::json!({ "context": "prod-eu" }));
    assert_eq!(store("production", "other"), serde_json::json!({ "in_cluster": {} }));
    assert!(store("production", "file").is_null());
    let tree = &config.environment("production").unwrap().tree;
    let path = ["environments", "production", "stores", "app", "kubernetes_secret", "cluster"];
    let (inherited, own) = (tree.at(&path).unwrap(), tree.at(&path[..2]).unwrap());
    assert_eq!(inherited.place, own.get("cluster").unwrap().place, "its line is the environment's");
}

#[test]
fn the_current_context_of_a_kubeconfig_is_never_taken() {
    for (from, to, says) in [
        ("    cluster: { context: prod-eu }\n", "", "no `cluster` is named"),
        ("{ context: prod-eu }", "{ kubeconfig: kube/prod }", "the current context is never used"),
        (
            "project: shop\n",
            "project: shop\ncluster: { context: prod-eu }\n",
            "`cluster` stands beside `environments`",
        ),
        ("{ context: prod-eu }", "{ contxt: prod-eu }", "contxt"),
    ] {
        let told = told(CLUSTERS, from, to);
        assert!(told.contains(says), "{told}");
    }
    let one = CLUSTERS.split("environments:").next().unwrap().to_owned()
        + "cluster: { context: one }\nstores: { app: { kubernetes_secret: { namespace: shop, name: api-keys } } }\nsecrets:"
        + CLUSTERS.split("secrets:").nth(1).unwrap();
    let config = parsed(&one);
    let store = serde_json::to_value(&config.environments[0].stores[0].config).unwrap();
    assert_eq!(store["kubernetes_secret"]["cluster"], serde_json::json!({ "context": "one" }));
}
