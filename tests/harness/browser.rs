//! Debian's Chromium, driven by its own driver, in a namespace without a way out.

use std::{
    fs,
    net::TcpListener,
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use anyhow::{Context as _, Result, bail};
use fantoccini::{Client, ClientBuilder};
use hyper_util::client::legacy::connect::HttpConnector;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::time::{Instant, sleep};

use crate::{netns::Netns, programs::Running, scratch};

const SOON: Duration = Duration::from_secs(30);

/// How a page is looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Look {
    /// A wide window, dark on light.
    Light,
    /// A wide window, light on dark.
    Dark,
    /// A phone, 360 points wide.
    Phone,
}

impl Look {
    /// A word for it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Light => "light",
            Self::Dark => "dark",
            Self::Phone => "phone",
        }
    }

    fn options(self, profile: &Path) -> Value {
        let mut arguments = vec![
            "--headless=new".to_owned(),
            // Root, in a container: the namespace is the sandbox.
            "--no-sandbox".to_owned(),
            "--disable-gpu".to_owned(),
            "--disable-dev-shm-usage".to_owned(),
            "--no-proxy-server".to_owned(),
            "--hide-scrollbars".to_owned(),
            "--window-size=1280,900".to_owned(),
            format!("--user-data-dir={}", profile.display()),
        ];
        arguments.push(format!("--blink-settings=preferredColorScheme={}", u8::from(self != Self::Dark)));
        let mut options = json!({ "args": arguments });
        if self == Self::Phone {
            options["mobileEmulation"] = json!({"deviceMetrics": {"width": 360, "height": 740, "pixelRatio": 2}});
        }
        options
    }
}

/// One window. The browser ends with this.
#[derive(Debug)]
pub struct Browser {
    client: Client,
    driver: Running,
    axe: String,
    _directory: TempDir,
}

impl Browser {
    /// Opens a window. The caller is in `place` already.
    pub async fn open(place: &Netns, look: Look) -> Result<Self> {
        let axe = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/axe/node_modules/axe-core/axe.min.js");
        let axe =
            fs::read_to_string(&axe).with_context(|| format!("read {}\nhint: tests/install.sh", axe.display()))?;
        let directory = scratch::directory()?;
        let port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
        let mut command = place.command("chromedriver");
        command.arg(format!("--port={port}")).env("HOME", directory.path()).env("TMPDIR", directory.path());
        let driver = Running::start_on(&mut command, Stdio::null(), "chromedriver", directory.path())?;
        let options = look.options(&directory.path().join("profile"));
        let capabilities = json!({ "browserName": "chrome", "goog:chromeOptions": options });
        let Value::Object(capabilities) = capabilities else { bail!("capabilities are an object") };
        let (url, until) = (format!("http://127.0.0.1:{port}"), Instant::now() + SOON);
        loop {
            let opened =
                ClientBuilder::new(HttpConnector::new()).capabilities(capabilities.clone()).connect(&url).await;
            match opened {
                Ok(client) => return Ok(Self { client, driver, axe, _directory: directory }),
                Err(error) if Instant::now() > until => {
                    bail!("no browser: {error}\nhint: tests/install.sh\n{}", driver.log())
                }
                Err(_) => sleep(Duration::from_millis(100)).await,
            }
        }
    }

    /// Goes to `url`.
    pub async fn show(&self, url: &str) -> Result<()> {
        self.client.goto(url).await.with_context(|| format!("show {url}"))
    }

    /// The value of an expression in the page.
    pub async fn value(&self, expression: &str) -> Result<Value> {
        let script = format!("return {expression}");
        self.client.execute(&script, Vec::new()).await.with_context(|| expression.to_owned())
    }

    /// What keeps some people from reading the page, by axe's rules of WCAG 2.2 A and AA and its best practices.
    pub async fn barriers(&self) -> Result<Vec<String>> {
        self.client.execute(&self.axe, Vec::new()).await.context("load axe")?;
        let script = "const done = arguments[arguments.length - 1]; axe.run().then(r => done(r.violations.map(v => \
                      v.id + ': ' + v.help + ': ' + v.nodes.map(n => n.html).slice(0, 3).join(' '))), e => done(['' + e]))";
        let found = self.client.execute_async(script, Vec::new()).await.context("run axe")?;
        let found = found.as_array().context("axe gives a list")?;
        Ok(found.iter().map(|found| found.as_str().unwrap_or_default().to_owned()).collect())
    }

    /// Keeps a picture of the whole page.
    pub async fn keep_picture(&self, path: &Path) -> Result<PathBuf> {
        let picture = self.client.screenshot().await.context("take a picture")?;
        fs::write(path, picture).with_context(|| format!("write {}", path.display()))?;
        Ok(path.to_owned())
    }

    /// Ends it.
    pub async fn close(self) -> Result<()> {
        self.client.clone().close().await.context("close the window")?;
        self.driver.kill()
    }
}
