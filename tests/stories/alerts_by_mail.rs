//! Alerts by mail, at the real Exim of Debian's.

use std::{fs, path::Path, time::Duration};

use anyhow::{Context as _, Result, ensure};
use deadlight_tests::{
    mail_server::{ADDRESS, GONE, LOGIN, MailServer},
    programs::{Ended, Running, finish},
    scratch,
    wait::wait_for,
};
use tempfile::TempDir;

const SOON: Duration = Duration::from_secs(30);
/// What would be a mail, a header or a command of its own.
const HOSTILE: &str =
    "\r\n.\r\nMAIL FROM:<x@example.net>\r\nBcc: all@example.net\r\n\r\n\u{1b}[31mgr\u{fc}n\u{202e}\r\n";

#[test]
fn an_exposure_and_its_end_arrive_as_one_thread_whatever_the_service_says() -> Result<()> {
    let world = World::start()?;
    world.configure(&format!("smtps://deadlight@{ADDRESS}"), "\"ops@example.net\", \"Nächte <night@example.net>\"")?;
    let service = world.service()?;
    world.run(&["run", "--once"])?.expect_code(1)?;
    let [begins, _] = world.mails::<2>()?;
    service.stop()?;
    world.run(&["run", "--once"])?.expect_code(0)?;
    let [.., ends, _] = world.mails::<4>()?;
    for (mail, subject) in [(&begins, "EXPOSED 8080/tcp on n1 (127.0.0.1), not on"), (&ends, "RESOLVED 8080/tcp on n1")]
    {
        ensure!(header(mail, "Subject")?.starts_with(subject), "{mail}");
        ensure!(header(mail, "Auto-Submitted")? == "auto-generated" && header(mail, "Bcc").is_err(), "{mail}");
    }
    ensure!(header(&ends, "References")? == header(&begins, "Message-ID")?, "{begins}\n{ends}");
    ensure!(header(&ends, "Message-ID")? != header(&begins, "Message-ID")?, "{begins}\n{ends}");
    let said: Vec<_> = begins.lines().filter(|line| line.starts_with("behind it: ")).collect();
    ensure!(said.len() == 1 && !begins.contains(['\u{1b}', '\u{202e}']), "{begins}");
    ensure!(!begins.contains("\nMAIL FROM") && !begins.contains("\nBcc"), "{begins}");
    ensure!(begins.trim_end().ends_with("seen from office-a"), "it is whole: {begins}");
    Ok(())
}

#[test]
fn a_server_that_was_away_is_told_when_it_is_back_and_only_once() -> Result<()> {
    let mut world = World::start()?;
    world.configure(&format!("smtp://deadlight@{ADDRESS}"), "\"ops@example.net\"")?;
    let _service = world.service()?;
    world.mail.go_away()?;
    let mut command = world.mail.scanner()?;
    command.args(["run", "--once", "--config"]).arg(world.path().join("scanner.toml"));
    let scanner = Running::start(&mut command, "scanner", world.path())?;
    wait_for("the scanner's complaint", SOON, || {
        let (log, wanted) = (scanner.log(), "alerts wait: failed to speak with the mail server: Connection refused");
        if log.contains(wanted) { Ok(()) } else { Err(log) }
    })?;
    world.mail.come_back()?;
    scanner.wait(SOON)?;
    for _ in 0..2 {
        world.run(&["run", "--once"])?.expect_code(1)?;
        let [mail] = world.mails::<1>()?;
        ensure!(header(&mail, "Subject")?.starts_with("EXPOSED 8080/tcp"), "{mail}");
    }
    Ok(())
}

#[test]
fn a_recipient_who_is_gone_keeps_the_others_from_nothing() -> Result<()> {
    let world = World::start()?;
    world.configure(&format!("smtps://deadlight@{ADDRESS}"), &format!("{GONE:?}, \"ops@example.net\""))?;
    let ended = world.run(&["alert", "test"])?.expect_code(0)?;
    ensure!(ended.stdout == "email: accepted\n", "{ended:?}");
    ensure!(ended.stderr.contains("a recipient gets no alerts") && ended.stderr.contains("no such user"), "{ended:?}");
    let [mail] = world.mails::<1>()?;
    ensure!(header(&mail, "Envelope-to")? == "ops@example.net", "{mail}");
    world.configure(&format!("smtps://deadlight@{ADDRESS}"), &format!("{GONE:?}"))?;
    world.refused("it answered 550 to the recipient: 5.1.1 no such user")?;
    world.mails::<1>().map(drop)
}

#[test]
fn nobody_else_gets_the_password_or_the_mail() -> Result<()> {
    let world = World::start()?;
    let server = |scheme: &str| format!("{scheme}{ADDRESS}");
    for scheme in ["smtps://deadlight@", "smtp://deadlight@"] {
        world.configure(&server(scheme), "\"ops@example.net\"")?;
        let mut command = world.mail.scanner()?;
        command.args(["alert", "test", "--config"]).arg(world.path().join("scanner.toml"));
        command.env("SSL_CERT_FILE", "/etc/ssl/certs/ca-certificates.crt");
        let ended = finish(&mut command)?.expect_code(2)?;
        ensure!(ended.stdout.contains("invalid peer certificate: UnknownIssuer"), "{ended:?}");
    }
    world.configure(&format!("{}:2525", server("smtp://deadlight@")), "\"ops@example.net\"")?;
    world.refused("the mail server offers no STARTTLS, and nothing is told in plain text")?;
    ensure!(!world.mail.log()?.contains("A=plain"), "nobody has logged in: {}", world.mail.log()?);
    world.mails::<0>().map(drop)
}

#[test]
fn a_wrong_password_is_said_and_not_shown() -> Result<()> {
    let world = World::start()?;
    world.configure(&format!("smtp://deadlight@{ADDRESS}:587"), "\"ops@example.net\"")?;
    fs::write(world.path().join("mail.password"), "wr0ng-h0rse\n")?;
    let ended = world.refused("it answered 535 to the user and the password")?;
    ensure!(!format!("{ended:?}").contains("h0rse"), "{ended:?}");
    fs::write(world.path().join("mail.password"), LOGIN.1)?;
    world.run(&["alert", "test"])?.expect_code(0)?;
    world.mails::<1>().map(drop)
}

#[test]
fn a_server_that_is_near_needs_neither_tls_nor_a_password() -> Result<()> {
    let world = World::start()?;
    world.configure("smtp://127.0.0.1:25", "\"ops@example.net\"")?;
    world.run(&["alert", "test"])?.expect_code(0)?;
    let [mail] = world.mails::<1>()?;
    ensure!(header(&mail, "Subject")? == "TEST of Deadlight's alerts: nothing is open", "{mail}");
    Ok(())
}

/// A scanner beside a mail server, and a directory with its configuration.
struct World {
    mail: MailServer,
    directory: TempDir,
}

impl World {
    fn start() -> Result<Self> {
        Ok(Self { mail: MailServer::start()?, directory: scratch::directory()? })
    }

    fn path(&self) -> &Path {
        self.directory.path()
    }

    /// Alerts of port 8080 of this host go to `to` by way of `url`.
    fn configure(&self, url: &str, to: &str) -> Result<()> {
        let password = if url.contains('@') { "password_file = \"mail.password\"\n" } else { "" };
        fs::write(self.path().join("mail.password"), format!("{}\n", LOGIN.1))?;
        let config = format!(
            "[vantage]\nid = \"office-a\"\n[sweep]\ntcp = \"8080\"\nudp = \"\"\n\
             [[node]]\nname = \"n1\"\naddresses = [\"127.0.0.1\"]\n\
             [[alert]]\nkind = \"email\"\nfrom = \"Deadlight <deadlight@example.net>\"\n\
             to = [{to}]\nurl = {url:?}\n{password}"
        );
        Ok(fs::write(self.path().join("scanner.toml"), config)?)
    }

    /// A service on port 8080 that says [`HOSTILE`] to everybody.
    fn service(&self) -> Result<Running> {
        let said = self.path().join("said");
        fs::write(&said, HOSTILE)?;
        let mut socat = self.mail.host.command("setpriv");
        socat.args(["--pdeathsig", "KILL", "socat", "-U", "TCP-LISTEN:8080,fork,reuseaddr"]);
        socat.arg(format!("OPEN:{},rdonly", said.display()));
        let mut service = Running::start(&mut socat, "service", self.path())?;
        service.wait_ready(SOON, || {
            self.mail.host.enter(|| Ok(std::net::TcpStream::connect("127.0.0.1:8080")?)).is_ok()
        })?;
        Ok(service)
    }

    fn run(&self, words: &[&str]) -> Result<Ended> {
        finish(self.mail.scanner()?.args(words).arg("--config").arg(self.path().join("scanner.toml")))
    }

    /// A test that ends with `why`.
    fn refused(&self, why: &str) -> Result<Ended> {
        let ended = self.run(&["alert", "test"])?.expect_code(2)?;
        ensure!(ended.stdout.contains(why), "{ended:?}");
        Ok(ended)
    }

    /// All mails, of which there are so many as soon as the server has delivered them.
    fn mails<const COUNT: usize>(&self) -> Result<[String; COUNT]> {
        wait_for("the mails", SOON, || {
            let mails = self.mail.mails().map_err(|error| format!("{error:#}"))?;
            mails.try_into().map_err(|mails| format!("{mails:?}\n{}", self.mail.log().unwrap_or_default()))
        })
    }
}

/// A header that is on one line, or folded.
fn header(mail: &str, name: &str) -> Result<String> {
    let headers = mail.split("\n\n").next().unwrap_or_default().replace("\n ", " ");
    let line = headers.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "));
    Ok(line.with_context(|| format!("no {name} in {mail}"))?.to_owned())
}
