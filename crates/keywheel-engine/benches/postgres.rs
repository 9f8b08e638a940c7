//! Rotations of database logins: keywheel's whole ones, OpenBao's of a static role, and the bare statement, in turns on one
//! PostgreSQL that syncs to disk.
//!
//! keywheel journals on disk as the program does, with everything that a rotation means: the look at the logins, the mint, the
//! logins that prove it, the end of the former version and the proof of that. Store and workload are in memory. Once one login is
//! given a new password (`cutover`), which is what OpenBao does; once two logins take turns (`alternate`); and once as far only as
//! `keywheel rotate` goes before it rests (`move`): minted, proven by logins, delivered, promoted, with the former login still
//! alive. OpenBao runs with raft storage, a file for its audit log and SCRAM. The bare statement sets a verifier that was made before,
//! over connections that stay open: nobody can be faster.
//!
//! Two more tell where the time goes. The floor is the bare statement and one login with the password that it set, with nothing
//! written down: nobody who proves a login by logging in can be faster. And `mint_and_verify` is what is left of a rotation of ours
//! where nothing is looked at before: minted and proven, with each intent and each outcome in the journal.
//!
//! `--rounds N` rounds of `--seconds S` each are run for every size. One line of JSON says what came of it.
//! `cargo xtask bench postgres` runs it.

#![expect(clippy::print_stdout, reason = "the result is what it is for")]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use futures_util::future::join_all;
use keywheel_core::call::{CallError, Refusal};
use keywheel_core::event::{Event, Outcome};
use keywheel_core::evidence::{Replica, Shows};
use keywheel_core::facts::{IssuerFacts, StoreFacts, WorkloadFacts};
use keywheel_core::fingerprint::Fingerprinter;
use keywheel_core::plan::{Part, Plan, Role, Slot, VersionRef};
use keywheel_core::rotation::Rotation;
use keywheel_core::secret::{Credential, Field, SecretName, SecretValue};
use keywheel_core::strategy::Strategy;
use keywheel_core::time::{Span, Timestamp};
use keywheel_core::version::{IssuedId, Stage, State, VersionId};
use keywheel_driver::issuer::{Identity, Issuer, Live, Mint, Minted, Randomness, Verdict};
use keywheel_driver::store::{Edit, Store, Written};
use keywheel_driver::workload::{Ensure, Workload};
use keywheel_driver::{Finding, slot};
use keywheel_drivers::{Build as _, Context, IssuerConfig};
use keywheel_engine::clock::SystemClock;
use keywheel_engine::limits::Limits;
use keywheel_engine::run::{Group, Ran, Until, name};
use keywheel_engine::{Build, Drivers, Engine, Watch};
use keywheel_ground::openbao::OpenBao;
use keywheel_ground::postgres::Postgres;
use keywheel_journal::Actor;
use keywheel_journal::sqlite::{Open, Places, SqliteJournal};
use tokio_postgres::{Client, NoTls};

#[path = "../tests/support/plain.rs"]
mod plain;
use plain::{STORE, WORKLOAD, plain_plan};

/// How many secrets there are, and how many are rotated at once.
const SIZES: [(usize, usize); 5] = [(8, 1), (64, 1), (8, 8), (64, 8), (64, 64)];

/// The most secrets of a size.
const MOST: usize = 64;

/// How many connections those have that keep theirs open.
const OPEN: usize = 8;

/// How the logins are called that are minted and proven, and nothing else.
const PROVEN: &str = "proven";

/// The password of the superuser and of every login before its first rotation.
const FIRST: &str = "kwcanary-bench";

fn main() {
    let wanted = Wanted::from_arguments();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .expect("threads can be started");
    // Nothing here speaks TLS, but the client is not built without.
    rustls::crypto::ring::default_provider().install_default().expect("it is the first one");
    let result = runtime.block_on(measure(&wanted));
    println!("{}", result.unwrap_or_else(|why| serde_json::json!({ "skipped": why })));
}

/// What was asked for.
struct Wanted {
    rounds: u32,
    span: Duration,
    folder: PathBuf,
}

impl Wanted {
    fn from_arguments() -> Self {
        let arguments: Vec<_> = std::env::args().collect();
        let after = |name: &str| {
            let at = arguments.iter().position(|argument| argument == name);
            at.and_then(|at| arguments.get(at + 1)).cloned()
        };
        let number =
            |name: &str, usual| after(name).and_then(|given| given.parse().ok()).unwrap_or(usual);
        let folder = after("--folder")
            .map(PathBuf::from)
            .expect("`--folder` says where the journal is made");
        Self {
            rounds: number("--rounds", 5),
            span: Duration::from_secs(number("--seconds", 3).into()),
            folder,
        }
    }
}

/// What takes its turn in a round.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Contender {
    Cutover,
    Alternate,
    Move,
    MintAndVerify,
    OpenBao,
    Floor,
    Statement,
}

impl Contender {
    const ALL: [Self; 7] = [
        Self::Cutover,
        Self::Alternate,
        Self::Move,
        Self::MintAndVerify,
        Self::OpenBao,
        Self::Floor,
        Self::Statement,
    ];

    fn name(self) -> &'static str {
        match self {
            Self::Cutover => "keywheel_cutover",
            Self::Alternate => "keywheel_alternate",
            Self::Move => "keywheel_move",
            Self::MintAndVerify => "keywheel_mint_and_verify",
            Self::OpenBao => "openbao_rotate_role",
            Self::Floor => "alter_role_and_login",
            Self::Statement => "bare_alter_role",
        }
    }

    /// Whether whole rotations are measured; else the part of one that comes first.
    fn is_whole(self) -> bool {
        !matches!(self, Self::Move | Self::MintAndVerify)
    }
}

async fn measure(wanted: &Wanted) -> Result<serde_json::Value, String> {
    let ground = Ground::prepare(&wanted.folder).await?;
    let mut sizes = Vec::new();
    for (secrets, at_once) in SIZES {
        let mut rates: BTreeMap<Contender, Vec<f64>> = BTreeMap::new();
        for round in 0..wanted.rounds as usize {
            // Each begins a round as often as every other.
            for turn in 0..Contender::ALL.len() {
                let contender = Contender::ALL[(round + turn) % Contender::ALL.len()];
                ground.steps.count(at_once == 1 && contender.is_whole());
                let rate = ground.rate(contender, secrets, at_once, wanted.span).await?;
                rates.entry(contender).or_default().push(rate);
            }
        }
        let rates: BTreeMap<_, _> =
            rates.into_iter().map(|(contender, rates)| (contender.name(), rates)).collect();
        sizes.push(serde_json::json!({
            "secrets": secrets, "at_once": at_once, "rotations_per_second": rates,
        }));
    }
    Ok(serde_json::json!({
        "sizes": sizes,
        "steps_one_at_a_time": ground.steps.told(),
        "openbao_errors": ground.errors.load(Ordering::Relaxed),
        "openbao_audit_bytes": ground.bao.audited(),
    }))
}

/// Everything that runs.
struct Ground {
    engine: Engine,
    steps: Arc<Steps>,
    world: Arc<World>,
    /// Connections that stay open.
    clients: Vec<Client>,
    statements: Vec<Statement>,
    http: reqwest::Client,
    errors: AtomicU64,
    bao: OpenBao,
    postgres: Postgres,
}

/// A login that is given two passwords in turns by the bare statement.
struct Statement {
    login: String,
    texts: [String; 2],
    turn: AtomicBool,
}

/// The passwords that the bare statement sets.
const TURNS: [&str; 2] = ["one", "two"];

impl Ground {
    async fn prepare(folder: &Path) -> Result<Self, String> {
        // It syncs to disk: that is the usual setting.
        let postgres = Postgres::start_with(FIRST, None, &["max_connections=200"])?;
        let bao = OpenBao::start()?;
        let admin = connect(postgres.port()).await;
        run(&admin, &shape()).await;
        openbao_roles(&bao, postgres.port())?;
        let mut clients = Vec::new();
        for _ in 0..OPEN {
            clients.push(connect(postgres.port()).await);
        }
        let statement = |number| Statement {
            login: format!("bare_{number}"),
            texts: TURNS.map(|password| {
                let verifier = postgres_protocol::password::scram_sha_256(password.as_bytes());
                format!("ALTER ROLE bare_{number} PASSWORD '{verifier}'")
            }),
            turn: AtomicBool::new(false),
        };
        let url = format!("postgresql://postgres:{FIRST}@127.0.0.1:{}/postgres", postgres.port());
        std::fs::write(folder.join("admin_url"), url).map_err(|error| error.kind().to_string())?;
        let steps = Arc::new(Steps::default());
        let world = Arc::new(World { folder: folder.to_owned(), places: Mutex::default() });
        Ok(Self {
            engine: engine(folder, &world, &steps),
            steps,
            world,
            clients,
            statements: (0..MOST).map(statement).collect(),
            http: reqwest::Client::builder().no_proxy().build().expect("a client can be built"),
            errors: AtomicU64::new(0),
            bao,
            postgres,
        })
    }

    /// Rotates for a while, and returns how many rotations a second were completed.
    async fn rate(
        &self,
        contender: Contender,
        secrets: usize,
        at_once: usize,
        span: Duration,
    ) -> Result<f64, String> {
        if !contender.is_whole() {
            return Ok(self.parts(contender, secrets, at_once, span / 4).await);
        }
        let (begun, done) = (Instant::now(), AtomicU64::new(0));
        // Each secret has one who rotates it, and each of them goes round.
        let workers = (0..at_once).map(|worker| {
            let done = &done;
            async move {
                for number in (worker..secrets).step_by(at_once).cycle() {
                    if begun.elapsed() >= span {
                        return;
                    }
                    if self.rotate(contender, number).await {
                        done.fetch_add(1, Ordering::Relaxed);
                    }
                }
            }
        });
        join_all(workers).await;
        Ok(done.into_inner() as f64 / begun.elapsed().as_secs_f64())
    }

    async fn rotate(&self, contender: Contender, number: usize) -> bool {
        match contender {
            Contender::OpenBao => self.openbao(number).await,
            Contender::Statement => self.set_password(number).await.is_ok(),
            Contender::Floor => {
                let password = self.set_password(number).await.expect("the server does it");
                let login = &self.statements[number].login;
                log_in(self.postgres.port(), login, password).await;
                true
            }
            ours => {
                let mut group = self.begin(ours, number).await;
                self.finish(&mut group).await;
                true
            }
        }
    }

    /// Sets the password of a login whose turn it is, by the bare statement, and returns it.
    async fn set_password(&self, number: usize) -> Result<&'static str, tokio_postgres::Error> {
        let Statement { texts, turn, .. } = &self.statements[number];
        let turn = usize::from(turn.fetch_xor(true, Ordering::Relaxed));
        self.clients[number % OPEN].batch_execute(&texts[turn]).await?;
        Ok(TURNS[turn])
    }

    /// Takes every secret through the first part of a rotation, again and again for a while, and returns how many a second that
    /// were. What is left of the rotations is done afterwards.
    async fn parts(
        &self,
        contender: Contender,
        secrets: usize,
        at_once: usize,
        span: Duration,
    ) -> f64 {
        let (mut took, mut done) = (Duration::ZERO, 0);
        while took < span {
            let (begun, begun_groups) = (Instant::now(), Mutex::new(Vec::new()));
            let workers = (0..at_once).map(|worker| {
                let groups = &begun_groups;
                async move {
                    for number in (worker..secrets).step_by(at_once) {
                        let mut group = self.begin(contender, number).await;
                        self.run(&mut group, false).await;
                        groups.lock().expect("no holder panics").push(group);
                    }
                }
            });
            join_all(workers).await;
            took += begun.elapsed();
            done += secrets;
            let groups = begun_groups.into_inner().expect("no holder panics");
            for group in &groups {
                let rotation = group.rotations().next().expect("there is one");
                let is_move = contender == Contender::Move;
                assert_eq!(rotation.was_ever_promoted(), is_move, "a part has the wrong length");
            }
            let rests = groups.into_iter().map(|mut group| async move {
                self.finish(&mut group).await;
            });
            join_all(rests).await;
        }
        done as f64 / took.as_secs_f64()
    }

    async fn openbao(&self, number: usize) -> bool {
        let url = format!("{}/v1/database/rotate-role/static_{number}", self.bao.address());
        let answer = self.http.post(url).header("X-Vault-Token", self.bao.token()).send().await;
        let well = answer.is_ok_and(|answer| answer.status().is_success());
        self.errors.fetch_add(u64::from(!well), Ordering::Relaxed);
        well
    }

    async fn begin(&self, contender: Contender, number: usize) -> Group {
        let (kind, strategy) = match contender {
            Contender::Cutover => ("single", Strategy::Cutover),
            Contender::MintAndVerify => (PROVEN, Strategy::Cutover),
            _ => ("pair", Strategy::Alternate),
        };
        let secret = SecretName::new(&format!("{kind}_{number}"), "bench").expect("it is a name");
        self.world.begin(&secret);
        let plan = Arc::new(self.next_plan(&secret, strategy).await);
        self.engine.begin(&[plan]).await.expect("the secret is free")
    }

    /// Runs a rotation to its end, or where it does not go to its `rest` as far as its kind goes.
    async fn run(&self, group: &mut Group, rest: bool) -> Ran {
        let secret = group.rotations().next().expect("there is one").plan().secret.clone();
        let place = self.world.place(&secret);
        let never = AtomicBool::new(false);
        let stop = if rest { &never } else { &place.is_proven };
        stop.store(false, Ordering::SeqCst);
        let until = Until { rest, patience: Span::ZERO, stop };
        self.engine.run(group, &until).await.expect("the journal works")
    }

    async fn finish(&self, group: &mut Group) {
        let ran = self.run(group, true).await;
        let rotation = group.rotations().next().expect("there is one");
        assert!(
            ran == Ran::Rested && rotation.outcome() == Some(Outcome::Completed),
            "a rotation ended as {:?}, {:?}",
            rotation.outcome(),
            rotation.parked()
        );
    }

    async fn next_plan(&self, secret: &SecretName, strategy: Strategy) -> Plan {
        let inventory = self.engine.journal.inventory(secret).await.expect("it can be read");
        let current =
            inventory.as_ref().and_then(|row| row.at(Stage::Current)).map(|version| VersionRef {
                version: version.version,
                issued: version.issued.clone(),
                state: State::Active,
                fingerprint: version.fingerprint,
            });
        let first = VersionRef {
            version: VersionId(1),
            issued: Some(IssuedId { id: first_login(secret), generation: Some(0) }),
            state: State::Active,
            fingerprint: None,
        };
        let pending = inventory.map_or(VersionId(2), |row| row.next);
        let mut plan = plain_plan(secret, current.unwrap_or(first), pending);
        plan.strategy = strategy;
        plan.issuer.facts = self.world.issuer(secret).facts();
        plan.stores[0].slots = ["password", "username"]
            .map(|field| Slot {
                address: field.into(),
                role: Role::Current,
                part: Part::Plain(Field::new(field)),
            })
            .into();
        plan
    }
}

fn engine(folder: &Path, world: &Arc<World>, steps: &Arc<Steps>) -> Engine {
    let places = Places {
        journal: folder.join("state/journal.db"),
        kek: folder.join("config/kek"),
        allow_work_tree: false,
    };
    let journal =
        SqliteJournal::open(&places, Open::CreateIfMissing).expect("the journal can be made");
    let holder = journal.holder("bench").expect("this process can be a holder");
    Engine {
        journal: Arc::new(journal),
        clock: Arc::new(SystemClock::new()),
        build: Arc::clone(world) as Arc<dyn Build>,
        random: Arc::new(|buffer| getrandom::fill(buffer).expect("the system has random bytes")),
        holder,
        actor: Actor {
            account: "bench".into(),
            origin: None,
            host: "bench".into(),
            method: "bench".into(),
            authenticated: false,
        },
        limits: Limits::new(8),
        watch: Arc::clone(steps) as Arc<dyn Watch>,
    }
}

/// How long each kind of step takes, by what is rotated; as long as one secret is rotated at a time.
#[derive(Default)]
struct Steps(Mutex<Taken>);

#[derive(Default)]
struct Taken {
    is_counting: bool,
    begun: Option<Instant>,
    took: BTreeMap<(&'static str, &'static str), Vec<f64>>,
}

impl Watch for Steps {
    fn recorded(&self, rotation: &Rotation, event: &Event, _at: Timestamp) {
        let mut taken = self.0.lock().expect("no holder panics");
        match event {
            Event::Intended { .. } => taken.begun = Some(Instant::now()),
            Event::Done { step, .. } if taken.is_counting => {
                let begun = taken.begun.take().expect("a step is intended before it is done");
                let what = match rotation.plan().strategy {
                    Strategy::Cutover => "keywheel_cutover",
                    _ => "keywheel_alternate",
                };
                let took = begun.elapsed().as_secs_f64() * 1_000.0;
                taken.took.entry((what, name(*step))).or_default().push(took);
            }
            _ => {}
        }
    }
}

impl Steps {
    fn count(&self, is_counting: bool) {
        self.0.lock().expect("no holder panics").is_counting = is_counting;
    }

    /// How many steps of each kind a rotation has, and the median of what one takes.
    fn told(&self) -> serde_json::Value {
        let mut taken = self.0.lock().expect("no holder panics");
        let mut told: BTreeMap<&str, BTreeMap<&str, serde_json::Value>> = BTreeMap::new();
        let mints: BTreeMap<&str, usize> = ["keywheel_cutover", "keywheel_alternate"]
            .map(|what| (what, taken.took.get(&(what, "mint")).map_or(1, Vec::len)))
            .into();
        for ((what, step), took) in &mut taken.took {
            took.sort_by(f64::total_cmp);
            let each = took.len() as f64 / mints[what] as f64;
            let told = told.entry(what).or_default();
            told.insert(step, serde_json::json!({ "each": each, "ms": took[took.len() / 2] }));
        }
        serde_json::json!(told)
    }
}

async fn connect(port: u16) -> Client {
    log_in(port, "postgres", FIRST).await
}

async fn log_in(port: u16, login: &str, password: &str) -> Client {
    let place =
        format!("host=127.0.0.1 port={port} dbname=postgres user={login} password={password}");
    let (client, connection) =
        tokio_postgres::connect(&place, NoTls).await.expect("the server lets its logins in");
    tokio::spawn(connection);
    client
}

async fn run(client: &Client, sql: &str) {
    client.batch_execute(sql).await.expect("the server does what it is told");
}

/// The roles of all contenders.
fn shape() -> String {
    let mut sql = String::new();
    for number in 0..MOST {
        for login in ["static", "bare", "single", PROVEN] {
            sql += &format!("CREATE ROLE {login}_{number} LOGIN PASSWORD '{FIRST}';");
        }
        for single in ["single", PROVEN] {
            sql += &format!(
                "CREATE ROLE own_{single}_{number}; GRANT own_{single}_{number} TO {single}_{number};\
                 ALTER ROLE {single}_{number} IN DATABASE postgres SET role TO own_{single}_{number};"
            );
        }
        sql += &format!(
            "CREATE ROLE own_pair_{number};\
             CREATE ROLE pair_{number}_a LOGIN PASSWORD '{FIRST}' IN ROLE own_pair_{number};\
             CREATE ROLE pair_{number}_b IN ROLE own_pair_{number};"
        );
        for login in ["a", "b"] {
            sql += &format!(
                "ALTER ROLE pair_{number}_{login} IN DATABASE postgres SET role TO own_pair_{number};"
            );
        }
    }
    sql
}

fn openbao_roles(bao: &OpenBao, port: u16) -> Result<(), String> {
    bao.run(&["secrets", "enable", "database"], &serde_json::json!({}))?;
    let connection = serde_json::json!({
        "plugin_name": "postgresql-database-plugin",
        "allowed_roles": "*",
        "connection_url":
            format!("postgresql://{{{{username}}}}:{{{{password}}}}@127.0.0.1:{port}/postgres?sslmode=disable"),
        "username": "postgres",
        "password": FIRST,
        "password_authentication": "scram-sha-256",
        "max_open_connections": OPEN,
        "max_idle_connections": OPEN,
    });
    bao.run(&["write", "database/config/bench", "-"], &connection)?;
    for number in 0..MOST {
        let role = serde_json::json!({
            "db_name": "bench",
            "username": format!("static_{number}"),
            "rotation_period": "24h",
        });
        bao.run(&["write", &format!("database/static-roles/static_{number}"), "-"], &role)?;
    }
    Ok(())
}

/// The login that a secret begins with.
fn first_login(secret: &SecretName) -> String {
    let name = secret.name();
    if name.starts_with("pair") { format!("{name}_a") } else { name.to_owned() }
}

/// What keywheel delivers to: for each secret a store and a workload of one replica.
struct World {
    folder: PathBuf,
    places: Mutex<BTreeMap<SecretName, Arc<Place>>>,
}

struct Place {
    name: String,
    /// Whether the issuer accepted what was minted.
    is_proven: AtomicBool,
    stored: Mutex<BTreeMap<String, SecretValue>>,
    held: Mutex<BTreeMap<String, SecretValue>>,
}

fn duplicate(values: &BTreeMap<String, SecretValue>) -> BTreeMap<String, SecretValue> {
    values.iter().map(|(address, value)| (address.clone(), value.duplicate())).collect()
}

impl World {
    fn begin(&self, secret: &SecretName) {
        let mut places = self.places.lock().expect("no holder panics");
        places.entry(secret.clone()).or_insert_with(|| {
            let first = BTreeMap::from([
                ("username".to_owned(), SecretValue::new(first_login(secret).into())),
                ("password".to_owned(), SecretValue::new(FIRST.into())),
            ]);
            Arc::new(Place {
                name: secret.name().to_owned(),
                is_proven: AtomicBool::new(false),
                held: Mutex::new(duplicate(&first)),
                stored: Mutex::new(first),
            })
        });
    }

    fn place(&self, secret: &SecretName) -> Arc<Place> {
        Arc::clone(&self.places.lock().expect("no holder panics")[secret])
    }

    fn issuer(&self, secret: &SecretName) -> Arc<dyn Issuer> {
        let name = secret.name();
        let logins = match name.starts_with("pair") {
            true => vec![format!("{name}_a"), format!("{name}_b")],
            false => vec![name.to_owned()],
        };
        let config = serde_json::json!({ "postgres": {
            "admin_url": { "file": "admin_url" }, "owner": format!("own_{name}"), "logins": logins,
        } });
        let config: IssuerConfig = serde_json::from_value(config).expect("it is a configuration");
        let issuer = config.build(&Context::at(&self.folder)).expect("it can be built");
        match name.starts_with(PROVEN) {
            true => Arc::new(Unexamined { issuer, place: self.place(secret) }),
            false => issuer,
        }
    }
}

impl Build for World {
    fn build(&self, plan: &Plan) -> Result<Drivers, Refusal> {
        let place = self.place(&plan.secret);
        Ok(Drivers {
            issuer: self.issuer(&plan.secret),
            stores: vec![place.clone()],
            workloads: vec![place],
            probes: Vec::new(),
        })
    }
}

/// The issuer of a login that nobody looks at before it is minted. It notes when one was proven, where the part ends that is
/// measured.
struct Unexamined {
    issuer: Arc<dyn Issuer>,
    place: Arc<Place>,
}

#[async_trait]
impl Issuer for Unexamined {
    fn facts(&self) -> IssuerFacts {
        self.issuer.facts()
    }

    async fn preflight(&self) -> Result<Vec<Finding>, CallError> {
        Ok(Vec::new())
    }

    fn generate(&self, random: Randomness<'_>, previous: Option<&IssuedId>) -> Option<Credential> {
        self.issuer.generate(random, previous)
    }

    async fn mint(&self, request: &Mint<'_>) -> Result<Minted, CallError> {
        self.issuer.mint(request).await
    }

    async fn verify(&self, credential: &Credential) -> Result<Verdict, CallError> {
        let verdict = self.issuer.verify(credential).await;
        self.place.is_proven.store(verdict == Ok(Verdict::Accepted), Ordering::SeqCst);
        verdict
    }

    async fn list(&self, prefix: &str) -> Result<Vec<Live>, CallError> {
        self.issuer.list(prefix).await
    }

    async fn revoke(&self, id: &IssuedId) -> Result<(), CallError> {
        self.issuer.revoke(id).await
    }

    async fn identify(&self, credential: &Credential) -> Result<Identity, CallError> {
        self.issuer.identify(credential).await
    }
}

#[async_trait]
impl Store for Place {
    fn facts(&self) -> StoreFacts {
        STORE
    }

    fn container(&self) -> String {
        format!("store of {}", self.name)
    }

    async fn preflight(&self, _addresses: &[String]) -> Result<Vec<Finding>, CallError> {
        Ok(Vec::new())
    }

    async fn read(&self, addresses: &[String]) -> Result<Vec<Option<SecretValue>>, CallError> {
        let stored = self.stored.lock().expect("no holder panics");
        Ok(addresses.iter().map(|one| stored.get(one).map(SecretValue::duplicate)).collect())
    }

    async fn write(&self, edits: &[Edit<'_>]) -> Result<Written, CallError> {
        let mut stored = self.stored.lock().expect("no holder panics");
        for edit in edits {
            assert!(edit.accepts(stored.get(edit.address)), "somebody else wrote the store");
            let value = edit.value.expect("the bench empties no slot").duplicate();
            stored.insert(edit.address.to_owned(), value);
        }
        Ok(Written { changed: true })
    }
}

#[async_trait]
impl Workload for Place {
    fn facts(&self) -> WorkloadFacts {
        WORKLOAD
    }

    fn resource(&self) -> String {
        format!("workload of {}", self.name)
    }

    async fn preflight(&self) -> Result<Vec<Finding>, CallError> {
        Ok(Vec::new())
    }

    async fn observe(
        &self,
        slots: &[String],
        fingerprinter: &Fingerprinter,
    ) -> Result<Vec<Replica>, CallError> {
        let held = self.held.lock().expect("no holder panics");
        let shown = slots.iter().filter_map(|name| {
            let value = held.get(slot::parts(name).1)?;
            Some((name.clone(), fingerprinter.of(value.expose())))
        });
        Ok(vec![Replica { id: "1".into(), started_at: None, shows: Shows::Slots(shown.collect()) }])
    }

    async fn roll(&self, _ensure: &Ensure<'_>) -> Result<(), CallError> {
        let stored = duplicate(&self.stored.lock().expect("no holder panics"));
        *self.held.lock().expect("no holder panics") = stored;
        Ok(())
    }
}
