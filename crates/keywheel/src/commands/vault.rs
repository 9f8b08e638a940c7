//! `keywheel vault`: the side of Vault or OpenBao that leases need.
//!
//! What is written is shown before. It is proven by one login that is made, tried, ended and tried again: an engine that was
//! told the wrong statements says nothing of it.

use std::path::PathBuf;

use clap::{Args, Subcommand};
use keywheel_core::call::CallError;
use keywheel_core::plan::Label;
use keywheel_core::secret::{Credential, SecretName};
use keywheel_core::version::IssuedId;
use keywheel_driver::issuer::{Issuer, Mint, Verdict};
use keywheel_driver::{Duration, Refusal, RefusalKind, SecretReference};
use keywheel_drivers::issuer::vault_dynamic;
use keywheel_drivers::vault::setup::{Database, Setup, Step};
use keywheel_drivers::{Build, Context, IssuerConfig};
use serde_json::json;

use crate::cli::Globals;
use crate::compile::unknown_secret;
use crate::config::{Config, Environment, Secret};
use crate::exit::Exit;
use crate::output::{Failure, Format, Output};
use crate::session::environment;
use crate::{code, confirm};

/// Bring the side of Vault or OpenBao into the shape that leases need
#[derive(Debug, Args)]
pub(crate) struct VaultArgs {
    #[command(subcommand)]
    command: VaultCommand,
}

#[derive(Debug, Subcommand)]
enum VaultCommand {
    /// Write a database engine's connection and role, and prove by one login that its logins really end
    SetupDatabase(SetupArgs),
}

#[derive(Debug, Args)]
struct SetupArgs {
    /// The secret whose issuer is `vault_dynamic`; its `path` names engine and role
    #[arg(value_name = "SECRET")]
    secret: String,
    /// The environment
    #[arg(long, short, value_name = "ENV")]
    environment: Option<String>,
    /// The server, as the engine reaches it
    #[arg(long, value_name = "HOST:PORT")]
    server: String,
    /// The database in which the logins work
    #[arg(long, value_name = "NAME")]
    database: String,
    /// How the engine secures its connection, in PostgreSQL's words
    #[arg(long, value_name = "MODE", default_value = "verify-full")]
    sslmode: String,
    /// The login with which the engine makes and ends others
    #[arg(long, value_name = "LOGIN")]
    admin: String,
    /// The file of its password
    #[arg(long, value_name = "FILE")]
    admin_password_file: PathBuf,
    /// The role without a login that owns everything
    #[arg(long, value_name = "ROLE")]
    owner: String,
    /// The name of the connection at the engine [default: that of the database]
    #[arg(long, value_name = "NAME")]
    connection: Option<String>,
    /// How long a login lives that is not extended
    #[arg(long, value_name = "TIME", default_value = "1h")]
    default_ttl: Duration,
    /// How long one lives at most [default: the issuer's `longest_life`, else `--default-ttl`]
    #[arg(long, value_name = "TIME")]
    max_ttl: Option<Duration>,
    /// Then give the admin a password that nobody but the engine ever knows; there is no way back
    #[arg(long)]
    rotate_root: bool,
    /// Do not ask
    #[arg(long, short)]
    yes: bool,
}

pub(crate) async fn run(args: &VaultArgs, globals: &Globals) -> Result<Exit, Failure> {
    match &args.command {
        VaultCommand::SetupDatabase(args) => setup_database(args, globals).await,
    }
}

async fn setup_database(args: &SetupArgs, globals: &Globals) -> Result<Exit, Failure> {
    let config = globals.load()?;
    let environment = environment(&config, args.environment.as_deref())?;
    let issuer = args.issuer(&config, environment)?;
    let context = Context::at(&config.folder);
    let setup = Setup::of(issuer, args.of_database(issuer), &context);
    let setup = setup.map_err(|refusal| failed("this cannot be set up", &refusal.into()))?;
    let output = globals.output();
    let steps = setup.steps().await;
    let steps = steps.map_err(|error| failed("the server cannot be asked", &error))?;
    args.show(&setup, &steps, output);
    confirm::go_on(environment, "Write this?", "read it above, then say `--yes`", args.yes)?;
    for (done, step) in steps.iter().enumerate() {
        setup.make(*step).await.map_err(|error| {
            let now = match done {
                0 => "nothing was written".to_owned(),
                done => format!("the first {done} of {} steps are written", steps.len()),
            };
            failed("this could not be written", &error)
                .now(now)
                .hint("mend what is wrong, and run the same command again")
        })?;
    }
    prove(issuer, &context, args).await?;
    if args.rotate_root {
        setup.rotate_root().await.map_err(|error| {
            failed("the password of the admin could not be rotated", &error).now(
                "engine and role are written and proven; after no answer the present password of the admin may have ended",
            )
        })?;
    }
    tell(args, output)
}

impl SetupArgs {
    fn issuer<'c>(
        &self,
        config: &'c Config,
        environment: &'c Environment,
    ) -> Result<&'c vault_dynamic::Config, Failure> {
        let usage = |message: String| Failure::new(message).code(code::USAGE);
        let name = self.secret.split_once('@').map_or(self.secret.as_str(), |(name, _)| name);
        let name = SecretName::new(name, &environment.name).map_err(|e| usage(e.to_string()))?;
        let (_, secret): (_, &Secret) =
            config.secret(&name).ok_or_else(|| unknown_secret(config, &name))?;
        match &secret.issuer {
            IssuerConfig::VaultDynamic(issuer) => Ok(issuer),
            other => {
                let kind = other.kind();
                Err(usage(format!("the issuer of `{name}` is `{kind}`, and not `vault_dynamic`")))
            }
        }
    }

    fn of_database(&self, issuer: &vault_dynamic::Config) -> Database {
        let max_ttl = self.max_ttl.or(issuer.longest_life).unwrap_or(self.default_ttl);
        Database {
            connection: self.connection.clone().unwrap_or_else(|| self.database.clone()),
            server: self.server.clone(),
            database: self.database.clone(),
            sslmode: self.sslmode.clone(),
            admin: self.admin.clone(),
            password: SecretReference::File(self.admin_password_file.clone()),
            owner: self.owner.clone(),
            default_ttl: self.default_ttl.span(),
            max_ttl: max_ttl.span(),
        }
    }

    fn show(&self, setup: &Setup, steps: &[Step], output: Output) {
        for (number, step) in (1..).zip(steps) {
            output.note(&format!("{number} {}", setup.in_words(*step)));
        }
        let number = steps.len() + 1;
        output.note(&format!("{number} make one login, log in with it, end it, and be refused"));
        if self.rotate_root {
            let admin = &self.admin;
            output.note(&format!(
                "{} give `{admin}` a password that nobody but the engine knows: no way back",
                number + 1
            ));
        }
    }
}

/// Makes one login, and sees it come and go.
async fn prove(
    issuer: &vault_dynamic::Config,
    context: &Context,
    args: &SetupArgs,
) -> Result<(), Failure> {
    let here = || format!("postgresql://{}/{}", args.server, args.database);
    let login_at = Some(issuer.login_at.clone().unwrap_or_else(here));
    let config = vault_dynamic::Config { login_at, ..issuer.clone() };
    let built = config.build(context);
    let issuer = built.map_err(|refusal| failed("no login can be tried", &refusal.into()))?;
    let unproven = |what: &str, error: &CallError| {
        let failure = failed(what, error).exit(Exit::NeedsOperator);
        failure.now("engine and role are written, and not proven")
    };
    let label = Label("kw-setup-1".into());
    let minted = issuer.mint(&Mint::new(&label)).await;
    let minted = minted.map_err(|error| unproven("no login could be made", &error))?;
    let (Some(issued), Some(credential)) = (minted.issued, minted.credential) else {
        let none = Refusal::operator(RefusalKind::Unsupported, "nothing was made");
        return Err(unproven("no login could be made", &none.into()));
    };
    let let_in = expect(&*issuer, &credential, &Verdict::Accepted).await;
    let ended = end(&*issuer, &issued, &credential).await;
    let_in.map_err(|error| unproven("the login that was made is not let in", &error))?;
    ended.map_err(|error| unproven("the login that was made does not end", &error))
}

async fn end(
    issuer: &dyn Issuer,
    issued: &IssuedId,
    credential: &Credential,
) -> Result<(), CallError> {
    issuer.revoke(issued).await?;
    expect(issuer, credential, &Verdict::Refused).await
}

async fn expect(
    issuer: &dyn Issuer,
    credential: &Credential,
    wanted: &Verdict,
) -> Result<(), CallError> {
    let why = match issuer.verify(credential).await? {
        verdict if verdict == *wanted => return Ok(()),
        Verdict::Accepted => "the database lets it in".to_owned(),
        Verdict::Refused => "the database refuses it".to_owned(),
        Verdict::CannotTell(why) => why,
    };
    Err(Refusal::operator(RefusalKind::Invalid, why).into())
}

fn tell(args: &SetupArgs, output: Output) -> Result<Exit, Failure> {
    match output.format {
        Format::Json => output.json(&json!({
            "written": true, "proven": true, "root_rotated": args.rotate_root,
        }))?,
        Format::Text => output.text(&format!(
            "written, and proven by one login that came and went\n  next: keywheel rotate {}\n",
            args.secret
        ))?,
    }
    Ok(Exit::Done)
}

fn failed(what: &str, error: &CallError) -> Failure {
    let failure = Failure::new(what).code(code::ISSUER).exit(Exit::Refused);
    failure.caused_by(error.to_string())
}
