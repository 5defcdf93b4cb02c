//! What `docker/release.sh` packs, with the programs of this run: what is the same for those of a release.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, ensure};
use deadlight_tests::{
    process::run,
    programs::{built, finish},
    scratch,
};
use serde_json::Value;

const PROGRAMS: [&str; 2] = ["deadlight-scanner", "deadlight-agent"];

#[test]
fn archives_checksums_and_boms_are_whole() -> Result<()> {
    let directory = scratch::directory()?;
    let (programs, out) = (directory.path().join("programs"), directory.path().join("out"));
    fs::create_dir(&programs)?;
    for program in PROGRAMS {
        run(Command::new("strip").arg(built(program)?).arg("-o").arg(programs.join(program)))?;
    }
    finish(Command::new(root().join("docker/release.sh")).arg("pack").arg(&programs).arg(&out))?.expect_code(0)?;

    let checked = run(Command::new("sha256sum").args(["--strict", "--check", "SHA256SUMS"]).current_dir(&out))?;
    let mut files = BTreeSet::new();
    for entry in fs::read_dir(&out)? {
        files.insert(entry?.file_name().into_string().ok().context("a name of other than UTF-8")?);
    }
    ensure!(files.remove("SHA256SUMS") && files.len() == 4, "{files:?}");
    ensure!(files.iter().all(|file| checked.contains(&format!("{file}: OK"))), "{files:?} and {checked}");
    for program in PROGRAMS {
        let named = |end: &str| files.iter().find(|file| file.starts_with(program) && file.ends_with(end));
        bom_is_whole(program, &out.join(named(".cdx.json").context("an SBOM")?))?;
        archive_is_whole(program, &out.join(named(".tar.gz").context("an archive")?), directory.path())?;
    }
    Ok(())
}

/// It names all that is compiled in, and no place of this machine.
fn bom_is_whole(program: &str, file: &Path) -> Result<()> {
    let text = fs::read_to_string(file)?;
    ensure!(!text.contains(root().to_str().context("UTF-8")?), "a path of this machine is in it");
    let bom: Value = serde_json::from_str(&text)?;
    ensure!(bom["bomFormat"] == "CycloneDX" && bom["metadata"]["component"]["name"] == program, "{}", bom["metadata"]);
    let component = |it: &Value| Some(format!("{} v{}", it["name"].as_str()?, it["version"].as_str()?));
    let named: BTreeSet<String> =
        bom["components"].as_array().context("components")?.iter().filter_map(component).collect();
    let mut tree = Command::new(env!("CARGO"));
    tree.args(["tree", "--locked", "--offline", "--prefix", "none", "--edges", "normal", "--package", program]);
    let tree = run(tree.current_dir(root()))?;
    let package = |line: &str| line.split(' ').take(2).collect::<Vec<_>>().join(" ");
    let used: BTreeSet<String> = tree.lines().skip(1).filter(|line| !line.is_empty()).map(package).collect();
    ensure!(used.len() > 100, "the list of packages was not read: {used:?}");
    let missing: Vec<_> = used.difference(&named).collect();
    ensure!(missing.is_empty(), "{program}'s SBOM does not name {missing:?}");
    Ok(())
}

fn archive_is_whole(program: &str, file: &Path, directory: &Path) -> Result<()> {
    run(Command::new("tar").arg("-xzf").arg(file).arg("-C").arg(directory))?;
    let name = file.file_name().and_then(|name| name.to_str()).context("a name")?;
    let inside = directory.join(name.trim_end_matches(".tar.gz"));
    let role = program.trim_start_matches("deadlight-");
    let unit = format!("systemd/{program}.service");
    let (bom, sample) = (format!("{program}.cdx.json"), format!("{role}.toml"));
    for wanted in ["README.md", "INSTALL.md", "LICENSE-APACHE", "LICENSE-MIT", &unit, &bom, &sample] {
        ensure!(inside.join(wanted).is_file(), "{name} has no {wanted}");
    }
    let version = run(Command::new(inside.join(program)).arg("--version"))?;
    let packed = name.trim_start_matches(program).trim_start_matches('-');
    let number = version.trim().split(' ').nth(1).context("a version")?;
    ensure!(packed.starts_with(number), "{name} holds {version}");
    if program == "deadlight-scanner" {
        for wanted in ["man1/deadlight-scanner.1", "completions/deadlight-scanner.bash"] {
            ensure!(inside.join(wanted).is_file(), "{name} has no {wanted}");
        }
    }
    Ok(())
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..").canonicalize().unwrap_or_default()
}
