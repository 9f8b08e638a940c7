//! Stores. To add one: write its file beside this one, with a `Config` that implements [`Build`](crate::Build), and name it
//! in the list below. Nothing else in the program changes.

use keywheel_driver::Store;

use crate::list::drivers;

mod claim;
pub(crate) mod document;
mod dotenv;
mod json_object;
mod local;
mod mark;
mod replace;
mod userlist;

drivers! {
    /// The configuration of a store: `{ env_file: {…} }`.
    StoreConfig for dyn Store {
        #[cfg(feature = "cloud")]
        aws_secrets_manager => AwsSecretsManager,
        env_file => EnvFile,
        external_secret => ExternalSecret,
        file => File,
        command => Command,
        kubernetes_secret => KubernetesSecret,
        github_actions => GithubActions,
        gitlab_variable => GitlabVariable,
        pgbouncer => Pgbouncer,
        pgpass => Pgpass,
        vault_kv => VaultKv,
        gcp_secret_manager => GcpSecretManager,
        azure_key_vault => AzureKeyVault,
    }
}
