//! The page, the API and the metrics, as they are read: in a real browser, by programs, and by whoever should not.

use std::{
    collections::BTreeSet,
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, ensure};
use deadlight_scanner::config::Config;
use deadlight_tests::{
    browser::{Browser, Look},
    memories::{self, remember},
    netns::Netns,
    observability,
    page::Served,
    process::run,
    programs::{built, finish},
    scratch,
};
use jiff::Timestamp;
use serde_json::Value;

const PAGES: [(&str, &str); 6] = [
    ("/", "overview"),
    ("/findings", "findings"),
    ("/nodes", "nodes"),
    ("/sweeps", "sweeps"),
    ("/agents", "agents"),
    ("/allowlist", "allowlist"),
];
const TOKEN: &str = "an-open-sesame-of-many-letters";

/// A page about six nodes and 40 days, in a namespace of its own; `story` runs there.
fn on_a_page(token: Option<&str>, story: impl AsyncFnOnce(SocketAddr, &Netns) -> Result<()> + Send) -> Result<()> {
    on_a_page_about(6, 40, token, story)
}

fn on_a_page_about(
    nodes: u16,
    days: i64,
    token: Option<&str>,
    story: impl AsyncFnOnce(SocketAddr, &Netns) -> Result<()> + Send,
) -> Result<()> {
    let place = Netns::new("page")?;
    place.ip("link set lo up")?;
    place.enter(|| {
        let directory = scratch::directory()?;
        let config = config(directory.path(), nodes)?;
        let token = token.map(|token| (directory.path().join("token"), token));
        if let Some((path, token)) = &token {
            fs::write(path, format!("{token}\n"))?;
        }
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(async {
            remember(&config.store, nodes, days, Timestamp::now()).await?;
            let page = Served::start(config, token.map(|(path, _)| path)).await?;
            story(page.address, &place).await
        })
    })
}

fn config(directory: &Path, nodes: u16) -> Result<Config> {
    for words in [["init"].as_slice(), &["issue-agent", "node-1"], &["issue-agent", "node-2"]] {
        let mut command = Command::new(built("deadlight-scanner")?);
        finish(command.arg("pki").args(words).arg("--dir").arg(directory.join("pki")))?.expect_code(0)?;
    }
    let text = memories::configuration(nodes);
    Ok(Config::parse(&text, &directory.join("scanner.toml"), jiff::civil::date(2026, 11, 29))?)
}

#[test]
fn everybody_can_read_it() -> Result<()> {
    on_a_page(None, async |address, place| {
        for look in [Look::Light, Look::Dark, Look::Phone] {
            let browser = Browser::open(place, look).await?;
            let url = |path: &str| format!("http://{address}{path}");
            browser.show(&url("/findings")).await?;
            let findings = browser.value("[...document.querySelectorAll('tbody a')].map(a => a.pathname)").await?;
            let paths = findings.as_array().context("a list")?.iter().filter_map(Value::as_str);
            let findings: Vec<_> =
                paths.map(|path| (path, if path == first(&findings) { "finding" } else { "" })).collect();
            ensure!(findings.len() > 20, "{}", findings.len());
            for (path, name) in PAGES.iter().copied().chain(findings.into_iter().take(4)) {
                browser.show(&url(path)).await?;
                readable(&browser).await.with_context(|| format!("{path}, {}", look.as_str()))?;
                let is_dark = browser.value("matchMedia('(prefers-color-scheme: dark)').matches").await?;
                ensure!(is_dark == (look == Look::Dark), "{path} is dark: {is_dark}");
                if !name.is_empty() && !path.is_empty() {
                    browser.keep_picture(&pictures()?.join(format!("{name}-{}.png", look.as_str()))).await?;
                }
            }
            browser.close().await?;
        }
        Ok(())
    })
}

fn first(list: &Value) -> &str {
    list[0].as_str().unwrap_or_default()
}

async fn readable(browser: &Browser) -> Result<()> {
    let barriers = browser.barriers().await?;
    ensure!(barriers.is_empty(), "{barriers:#?}");
    for (wanted, expression) in [
        (Value::from(0), "document.scripts.length"),
        (Value::from(0), "document.images.length"),
        (Value::from(0), "document.querySelectorAll('[style]').length"),
        (Value::from(1), "document.querySelectorAll('h1').length"),
        // It goes by itself where a window is narrow; wide tables have scroll bars of their own.
        (Value::from(true), "document.documentElement.scrollWidth <= innerWidth"),
        (
            Value::from(true),
            "performance.getEntriesByType('resource').every(e => new URL(e.name).origin === location.origin)",
        ),
        (Value::from(true), "getComputedStyle(document.querySelector('main')).maxWidth !== 'none'"),
        // Whoever has no mouse gets in at the top, past the menu.
        (Value::from("Skip to the content"), "document.querySelector('a').textContent"),
    ] {
        let value = browser.value(expression).await?;
        ensure!(value == wanted, "{expression} is {value}");
    }
    let title = browser.value("document.title").await?;
    ensure!(title.as_str().is_some_and(|title| title.ends_with(" - Deadlight")), "{title}: what others said has run");
    Ok(())
}

/// `make pictures` takes some of them over.
fn pictures() -> Result<PathBuf> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/pictures");
    fs::create_dir_all(&directory)?;
    Ok(directory)
}

#[test]
fn the_api_is_what_it_says() -> Result<()> {
    on_a_page(None, async |address, _| {
        let get = async |path: &str| get(address, &format!("/api{path}"), &[]).await;
        let document: Value = serde_json::from_str(&get("/openapi.json").await?.1)?;
        let findings: Value = serde_json::from_str(&get("/v1/findings").await?.1)?;
        let id = findings["findings"][0]["id"].as_str().context("a finding")?.to_owned();
        let paths = document["paths"].as_object().context("paths")?;
        let served: BTreeSet<&str> = paths.keys().map(String::as_str).collect();
        ensure!(served.len() == 7, "{served:?}");
        for (path, described) in paths {
            let schema = &described["get"]["responses"]["200"]["content"]["application/json"]["schema"];
            ensure!(schema.is_object(), "{path} has no schema");
            let schema = serde_json::json!({ "$ref": schema["$ref"], "components": document["components"] });
            let (status, text) = get(&path.replace("{id}", &id)).await?;
            ensure!(status == 200, "{path}: {status} {text}");
            let answer: Value = serde_json::from_str(&text)?;
            let validator = jsonschema::options().should_validate_formats(true).build(&schema)?;
            let wrong: Vec<_> =
                validator.iter_errors(&answer).map(|error| format!("{error} at {}", error.instance_path())).collect();
            ensure!(wrong.is_empty(), "{path}: {wrong:#?}\n{answer:#}");
            let mut other = answer;
            other["unheard-of"] = Value::from(1);
            ensure!(!validator.is_valid(&other), "{path}: its schema takes everything");
        }
        for nowhere in ["/v1/findings/0123456789abcdef", "/v1/findings/..%2f", "/v1/none", "/v2/status"] {
            ensure!(get(nowhere).await?.0 == 404, "{nowhere}");
        }
        Ok(())
    })
}

#[test]
fn prometheus_takes_the_metrics() -> Result<()> {
    on_a_page(None, async |address, _| {
        let (status, text) = get(address, "/metrics", &[]).await?;
        ensure!(status == 200, "{status}");
        for wanted in [
            "deadlight_scanner_findings{status=\"refused\"} 1\n",
            "deadlight_scanner_critical_exposures 1\n",
            "deadlight_scanner_last_sweep_complete 1\n",
            "deadlight_scanner_last_sweep_loss_ratio 0.005\n",
            "deadlight_scanner_alert_sink_failing{sink=\"slack\"} 1\n",
            "deadlight_scanner_alerts_waiting{sink=\"alertmanager\"} 0\n",
            "deadlight_scanner_agent_mode{mode=\"observe\",node=\"node-4\"} 1\n",
        ] {
            ensure!(text.contains(wanted), "no {wanted:?} in {text}");
        }
        observability::check("scanner", &text)
    })
}

#[test]
fn the_alert_rules_say_what_they_should() -> Result<()> {
    let mut promtool = Command::new("promtool");
    let said = run(promtool.args(["test", "rules", "rules.test.yml"]).current_dir(observability::directory()))?;
    ensure!(said.contains("SUCCESS"), "{said}");
    let dashboard: Value =
        serde_json::from_str(&fs::read_to_string(observability::directory().join("dashboard.json"))?)?;
    let panels = dashboard["panels"].as_array().context("panels")?;
    let expressions = panels.iter().flat_map(|panel| panel["targets"].as_array().into_iter().flatten());
    let expressions: Vec<_> = expressions.filter_map(|target| target["expr"].as_str()).collect();
    ensure!(expressions.len() >= panels.len() && panels.len() > 10, "{expressions:?}");
    let rule = |expression: &&str| format!("  - {{alert: A, expr: {:?}}}\n", expression.replace("$instance", "x"));
    let rules: String = expressions.iter().map(rule).collect();
    let directory = scratch::directory()?;
    let path = directory.path().join("expressions.yml");
    fs::write(&path, format!("groups:\n- name: g\n  rules:\n{rules}"))?;
    run(Command::new("promtool").args(["check", "rules", "--lint=none"]).arg(&path))?;
    Ok(())
}

#[test]
fn only_who_may_look_sees() -> Result<()> {
    on_a_page(Some(TOKEN), async |address, _| {
        for path in ["/", "/findings", "/style.css", "/api/v1/status", "/api/openapi.json", "/metrics", "/none"] {
            for header in ["", "authorization: Bearer wrong", "authorization: Basic OndyaXRl"] {
                let (status, text) = get(address, path, &[header]).await?;
                ensure!(status == 401 && !text.contains("node-"), "{path} {header}: {status} {text}");
            }
        }
        let (status, text) = get(address, "/", &[&format!("authorization: Bearer {TOKEN}")]).await?;
        ensure!(status == 200 && text.contains("node-2"), "{status} {text}");
        Ok(())
    })?;
    on_a_page(None, async |address, _| {
        let (status, text) = get(address, "/", &["host: rebound.example"]).await?;
        ensure!(status == 421 && !text.contains("node-"), "{status} {text}");
        for method in ["POST", "PUT", "DELETE", "PATCH"] {
            let (status, _) = ask(address, "/api/v1/findings", &["-X", method]).await?;
            ensure!(status == 405, "{method}: {status}");
        }
        // Also where nothing is shown.
        for words in [&["-i"] as &[_], &["-i", "-H", "host: rebound.example"]] {
            let headers = ask(address, "/", words).await?.1;
            ensure!(headers.contains("content-security-policy: default-src 'none'; style-src 'self';"), "{headers}");
        }
        Ok(())
    })
}

#[test]
fn pages_stay_small_with_500_nodes_and_a_year() -> Result<()> {
    const MOST: usize = 200 * 1_024;
    on_a_page_about(500, 20, None, async |address, _| {
        let parts = ["/findings?page=9", "/nodes?page=4", "/nodes?page=99999"];
        for path in PAGES.map(|(path, _)| path).into_iter().chain(parts) {
            let (status, text) = get(address, path, &[]).await?;
            ensure!(status == 200 && text.len() <= MOST, "{path}: {status}, {} bytes", text.len());
        }
        Ok(())
    })
}

async fn get(address: SocketAddr, path: &str, headers: &[&str]) -> Result<(u16, String)> {
    let headers: Vec<&str> =
        headers.iter().filter(|header| !header.is_empty()).flat_map(|header| ["-H", *header]).collect();
    ask(address, path, &headers).await
}

async fn ask(address: SocketAddr, path: &str, words: &[&str]) -> Result<(u16, String)> {
    let mut curl = Command::new("curl");
    curl.args(["-sS", "--noproxy", "*", "--path-as-is", "-w", "\n%{http_code}"]).args(words);
    curl.arg(format!("http://{address}{path}"));
    let said = tokio::task::spawn_blocking(move || run(&mut curl)).await??;
    let (text, status) = said.trim_end().rsplit_once('\n').context("a status")?;
    Ok((status.parse()?, text.to_owned()))
}
