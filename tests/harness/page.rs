//! The page that `[web]` makes `run` show, without the scanner.

use std::{net::SocketAddr, path::PathBuf, sync::Arc};

use anyhow::Result;
use deadlight_scanner::{
    config::{Config, WebConfig},
    store::Database,
    web::Page,
};
use tokio::{sync::watch, task::JoinHandle};

/// A page on loopback, at a port of the kernel's choice; it ends with this.
#[derive(Debug)]
pub struct Served {
    /// Where it listens.
    pub address: SocketAddr,
    serving: JoinHandle<()>,
    /// As long as there may be another configuration.
    _shown: watch::Sender<Arc<Config>>,
}

impl Served {
    /// Shows what the database of `config` has, to those who know the word in the file `token`, or to this host.
    pub async fn start(config: Config, token: Option<PathBuf>) -> Result<Self> {
        let web = WebConfig { listen: "127.0.0.1:0".parse()?, token };
        let database = Arc::new(Database::open_existing(&config.store, &config.vantage).await?);
        let (shown, config) = watch::channel(Arc::new(config));
        let page = Page::open(&web, config, database).await?;
        Ok(Self { address: page.address()?, serving: tokio::spawn(page.serve()), _shown: shown })
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        self.serving.abort();
    }
}
