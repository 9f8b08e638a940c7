//! Stores. To add one: write its file beside this one, with a `Config` that implements [`Build`](crate::Build), and name it
//! in the list below. Nothing else in the program changes.

use keywheel_driver::Store;

use crate::list::drivers;

mod claim;
mod dotenv;
mod local;
mod replace;
mod userlist;

drivers! {
    /// The configuration of a store: `{ env_file: {…} }`.
    StoreConfig for dyn Store {
        env_file => EnvFile,
        file => File,
        command => Command,
        github_actions => GithubActions,
        gitlab_variable => GitlabVariable,
        pgbouncer => Pgbouncer,
        pgpass => Pgpass,
    }
}
