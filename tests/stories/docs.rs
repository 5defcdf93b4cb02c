//! What the documentation says, beside what is there: links, commands, configuration, files and messages.

mod commands;
mod configuration;
pub(crate) mod page;

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Component, Path, PathBuf},
};

use anyhow::{Context as _, Result, ensure};
use axum::http::Uri;

use page::{Block, Page};

/// Where operators' pages are.
const PAGES: &str = "docker/docs/";
/// Whose headings are messages of the programs.
const SYMPTOMS: &str = "docker/docs/troubleshooting.md";
/// Links that leave the repository break without anybody here noticing.
const MOST_EXTERNAL: usize = 12;
/// Parts of a message that are shorter say nothing.
const SHORTEST: usize = 8;

/// Everything that a page can refer to.
struct Repository {
    files: BTreeSet<String>,
    pages: BTreeMap<String, Page>,
    targets: BTreeSet<String>,
    keys: BTreeSet<String>,
    /// All Rust of the programs, with broken literals joined.
    source: String,
}

impl Repository {
    fn read() -> Result<Self> {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().context("the top")?;
        let mut files = BTreeSet::new();
        list(root, root, &mut files)?;
        let text = |path: &str| fs::read_to_string(root.join(path)).with_context(|| format!("read {path}"));
        let with = |suffix: &'static str| files.iter().filter(move |path| path.ends_with(suffix));
        let pages = with(".md").map(|path| Ok((path.clone(), Page::read(path, &text(path)?))));
        let product = |path: &&String| ["agent/", "scanner/", "shared/"].iter().any(|crate_| path.starts_with(crate_));
        let source = with(".rs").filter(product).map(|path| text(path)).collect::<Result<String>>()?;
        Ok(Self {
            pages: pages.collect::<Result<_>>()?,
            targets: commands::targets(&text("Makefile")?),
            keys: configuration::keys(),
            source: joined(&source),
            files,
        })
    }

    /// What is wrong with a page.
    fn complaints(&self, page: &Page) -> Vec<String> {
        let links = page.links.iter().filter_map(|link| self.wrong_link(page, link));
        let blocks = page.blocks.iter().flat_map(|block| self.wrong_block(block));
        let spans = page.spans.iter().flat_map(|span| {
            let command = commands::wrong_in_sentence(span, &self.targets);
            let key = configuration::wrong_in_sentence(span, &self.keys);
            [command, key, self.wrong_path(page, span)].into_iter().flatten()
        });
        let symptoms = page.symptoms.iter().filter(|_| page.path == SYMPTOMS);
        let symptoms = symptoms.filter_map(|symptom| self.wrong_symptom(symptom));
        let found = links.chain(blocks).chain(spans).chain(symptoms);
        found.map(|complaint| format!("{}: {complaint}", page.path)).collect()
    }

    fn wrong_link(&self, page: &Page, link: &str) -> Option<String> {
        if link.contains("://") {
            let uri: Option<Uri> = link.parse().ok();
            let host = uri.as_ref().filter(|uri| uri.scheme_str() == Some("https")).and_then(Uri::host);
            return host.is_none_or(|host| !host.contains('.')).then(|| format!("{link} is no https link"));
        }
        let (path, anchor) = link.split_once('#').map_or((link, None), |(path, anchor)| (path, Some(anchor)));
        let path = if path.is_empty() { page.path.clone() } else { beside(&page.path, path) };
        if !self.has(&path) {
            return Some(format!("{link} leads nowhere"));
        }
        let target = if path == page.path { Some(page) } else { self.pages.get(&path) };
        let has = |anchor: &str| target.is_some_and(|target| target.anchors.contains(anchor));
        anchor.is_some_and(|anchor| !has(anchor)).then(|| format!("{link}: there is no such heading"))
    }

    fn wrong_block(&self, Block { language, text, .. }: &Block) -> Vec<String> {
        match language.as_deref() {
            Some("text") => Vec::new(),
            Some("toml") => configuration::wrong_in_block(text).into_iter().collect(),
            Some("sh") | None => {
                let lines = text.replace("\\\n", " ");
                let table = lines.lines().find(|line| line.starts_with('['));
                let table = table.map(|line| format!("`{line}`: configuration goes behind a fence with `toml`"));
                let wrong = lines.lines().filter_map(|line| commands::wrong_in_line(line, &self.targets));
                table.into_iter().chain(wrong).collect()
            }
            Some(other) => vec![format!("nobody checks blocks of `{other}`; toml, sh and text are known")],
        }
    }

    /// What looks like a file or a folder of the repository has to be one, by the end of its path at least.
    fn wrong_path(&self, page: &Page, span: &str) -> Option<String> {
        let is_path = |c: char| c.is_ascii_alphanumeric() || "._-/{},*".contains(c);
        let first = span.split('/').next().unwrap_or_default();
        let tops = self.files.iter().filter_map(|file| file.split_once('/')).map(|(top, _)| top);
        let is_inside = span.contains('/') && (tops.into_iter().any(|top| top == first) || span.ends_with('/'));
        let is_ours = is_inside || [".rs", ".md", ".sh"].iter().any(|end| span.ends_with(end));
        if !is_ours || !span.chars().all(is_path) || span.starts_with(['/', '.']) || first == "target" {
            return None;
        }
        let missing = braces(span).into_iter().find(|path| {
            let here = beside(&page.path, path);
            let path = path.trim_end_matches('/');
            let is_end = |file: &String| file.ends_with(&format!("/{path}")) || file.contains(&format!("/{path}/"));
            !(self.has(&here) || self.has(path) || path.contains('*') || self.files.iter().any(is_end))
        });
        missing.map(|path| format!("there is no {path}"))
    }

    /// Every part of it, between the places where `…` stands for what differs.
    fn wrong_symptom(&self, symptom: &str) -> Option<String> {
        let mut parts = symptom.split('…').map(str::trim).filter(|part| part.len() >= SHORTEST).peekable();
        if parts.peek().is_none() {
            return Some(format!("`{symptom}` is too short to be looked up"));
        }
        parts.find(|part| !self.source.contains(*part)).map(|part| format!("no program says `{part}`"))
    }

    fn has(&self, path: &str) -> bool {
        let folder = format!("{}/", path.trim_end_matches('/'));
        self.files.contains(path) || self.files.iter().any(|file| file.starts_with(&folder))
    }
}

/// Everything below `folder` but what is built, as paths from `root`.
fn list(root: &Path, folder: &Path, files: &mut BTreeSet<String>) -> Result<()> {
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        let name = path.strip_prefix(root)?.to_string_lossy().into_owned();
        match path.is_dir() {
            true if matches!(name.as_str(), "target" | ".git") => {}
            true => list(root, &path, files)?,
            false => drop(files.insert(name)),
        }
    }
    Ok(())
}

/// `path`, as the file `page` means it, from the top.
fn beside(page: &str, path: &str) -> String {
    let mut clean = PathBuf::new();
    for part in Path::new(page).parent().unwrap_or(Path::new("")).join(path).components() {
        match part {
            Component::ParentDir => drop(clean.pop()),
            part => clean.push(part),
        }
    }
    clean.to_string_lossy().into_owned()
}

/// `a/{b,c}` is `a/b` and `a/c`.
fn braces(path: &str) -> Vec<String> {
    match path.split_once('{').and_then(|(before, rest)| Some((before, rest.split_once('}')?))) {
        Some((before, (inner, after))) => inner.split(',').map(|part| format!("{before}{part}{after}")).collect(),
        None => vec![path.to_owned()],
    }
}

/// Literals that go on in the next line, in one.
fn joined(source: &str) -> String {
    let mut parts = source.split("\\\n");
    let first = parts.next().unwrap_or_default().to_owned();
    parts.fold(first, |text, part| text + part.trim_start()).replace("\\\"", "\"")
}

#[test]
fn everything_that_is_written_is_so() -> Result<()> {
    let repository = Repository::read()?;
    ensure!(repository.pages.len() >= 17, "{:?}", repository.pages.keys());
    let complaints: Vec<_> = repository.pages.values().flat_map(|page| repository.complaints(page)).collect();
    ensure!(complaints.is_empty(), "{}", complaints.join("\n"));
    let external: BTreeSet<_> =
        repository.pages.values().flat_map(|page| &page.links).filter(|link| link.contains("://")).collect();
    ensure!(external.len() <= MOST_EXTERNAL, "{external:?}");
    Ok(())
}

#[test]
fn every_page_and_picture_is_found_from_the_entry() -> Result<()> {
    let repository = Repository::read()?;
    let entry = &repository.pages["README.md"];
    let linked: BTreeSet<_> = entry.links.iter().map(|link| link.split('#').next().unwrap_or_default()).collect();
    let ours = |path: &&String| path.starts_with(PAGES) || path.starts_with("docker/pictures/");
    let lost: Vec<_> = repository.files.iter().filter(ours).filter(|path| !linked.contains(path.as_str())).collect();
    ensure!(lost.is_empty(), "README.md does not lead to {lost:?}");
    Ok(())
}

#[test]
fn what_is_wrong_is_found() -> Result<()> {
    let repository = Repository::read()?;
    for (text, complaint) in [
        ("[here](#a-b)\n\n# A & b", "#a-b: there is no such heading"),
        ("[gone](docker/docs/gone.md)", "leads nowhere"),
        ("![gone](docker/pictures/gone.png)", "leads nowhere"),
        ("[gone](SECURITY.md#gone)", "no such heading"),
        ("[plain](http://example.org)", "no https link"),
        ("    sudo deadlight-scanner scan --unheard-of 198.51.100.11", "--unheard-of"),
        ("    deadlight-agent revert", "required arguments"),
        ("    deadlight-agent explain 70000/tcp       # no such port", "70000/tcp"),
        ("```sh\ncd x && target/release/deadlight-agent undo\n```", "undo"),
        ("    deadlight-scanner scan \\\n      --nothing", "--nothing"),
        ("    make coffee", "no target `coffee`"),
        ("Say `make coffee`.", "no target `coffee`"),
        ("Say `deadlight-scanner pki forget n1`.", "pki has no `forget`"),
        ("Say `deadlight-agent run --fast`.", "run has no --fast"),
        ("```toml\n# scanner.toml\n[[alert]]\nkind = \"pigeon\"\n```", "pigeon"),
        ("```toml\n# agent.toml\nmod = \"enforce\"\n```", "did you mean `mode`"),
        ("```toml\nmode = \"enforce\"\n```", "the file's name"),
        ("    [[alert]]", "behind a fence"),
        ("```yaml\na: b\n```", "nobody checks"),
        ("Set `posture_of = \"allowlist\"`.", "no configuration has"),
        ("Set `[store] place`.", "no configuration has"),
        ("See `tests/stories/gone.rs`.", "there is no tests/stories/gone.rs"),
        ("See `agent/src/{plan,gone}/`.", "there is no agent/src/gone/"),
    ] {
        let found = repository.complaints(&Page::read("README.md", text)).join("\n");
        ensure!(found.contains(complaint), "{text:?}: {complaint:?} is not in {found:?}");
    }
    let symptoms = Page::read(SYMPTOMS, "### failed to read the runes of …");
    ensure!(repository.complaints(&symptoms).len() == 1, "a message that no program has");
    Ok(())
}

#[test]
fn what_is_right_is_left_alone() -> Result<()> {
    let repository = Repository::read()?;
    let text = "\
# A & b
[here](#a--b) [there](../SECURITY.md#known-limits) [away](https://example.org/x?y#z) `/etc/deadlight/agent.toml`

    sudo -E make test PACKAGES=shared && A=b deadlight-agent revert --all    # all of it
    deadlight-scanner scan --help | less

`deadlight-scanner pki rotate-ca`, `[prove] vantages = 2`, `mode = \"enforce\"`, `[[allow]]`, `shared/src/{file,log}.rs`

```toml
# scanner.toml, at the end
[[allow]]
ports = \"8080/tcp\"
nodes = [\"n1\"]
owner = \"infra\"
reason = \"migration\"
```
```text
deadlight-scanner --> deadlight-agent
```
";
    let found = repository.complaints(&Page::read("docker/README.md", text));
    ensure!(found.is_empty(), "{found:#?}");
    Ok(())
}
