//! The real Exim of Debian's, in a namespace of its own: it takes mail by TLS for whoever has the password.

use std::{
    fs,
    net::TcpStream,
    os::unix::fs::{PermissionsExt as _, chown},
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Context as _, Result, bail};
use nix::unistd::User;
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use tempfile::TempDir;

use crate::{
    netns::Netns,
    programs::{Running, scanner},
    scratch,
};

/// Where strangers may listen in. Ports 465 (TLS) and 587 (STARTTLS) take the password, 2525 knows no TLS.
pub const ADDRESS: &str = "203.0.113.25";
/// The user that may write, and the password.
pub const LOGIN: (&str, &str) = ("deadlight", "c0rrect h0rse");
/// Nobody of that name is there any more.
pub const GONE: &str = "gone@example.net";

/// It never delivers as root.
const USER: &str = "Debian-exim";
const SOON: Duration = Duration::from_secs(30);

/// The server and the host that it runs on, which is near itself on port 25; both end with this.
#[derive(Debug)]
pub struct MailServer {
    server: Option<Running>,
    /// The host.
    pub host: Netns,
    directory: TempDir,
}

impl MailServer {
    /// Starts one with a certificate of a CA of its own.
    pub fn start() -> Result<Self> {
        let host = Netns::new("mail")?;
        host.ip(&format!("addr add {ADDRESS}/32 dev lo"))?;
        let directory = scratch::directory()?;
        let path = directory.path();
        fs::set_permissions(path, fs::Permissions::from_mode(0o711))?;
        let user = User::from_name(USER)?.context("no user Debian-exim\nhint: tests/install.sh")?;
        for name in ["spool", "log", "mail"] {
            let path = path.join(name);
            fs::create_dir(&path)?;
            chown(&path, Some(user.uid.as_raw()), Some(user.gid.as_raw()))?;
        }
        certify(path, user.gid.as_raw())?;
        fs::write(path.join("exim.conf"), config(path))?;
        let mut mail = Self { server: None, host, directory };
        mail.come_back()?;
        Ok(mail)
    }

    /// Nobody is there any more.
    pub fn go_away(&mut self) -> Result<()> {
        self.server.take().map_or(Ok(()), Running::kill)
    }

    /// It is there again.
    pub fn come_back(&mut self) -> Result<()> {
        let mut exim = self.host.command("setpriv");
        exim.args(["--pdeathsig", "KILL", "exim4", "-bdf", "-C"]).arg(self.directory.path().join("exim.conf"));
        let mut server = Running::start(&mut exim, "exim", self.directory.path())?;
        server.wait_ready(SOON, || self.host.enter(|| Ok(TcpStream::connect("127.0.0.1:25")?)).is_ok())?;
        self.server = Some(server);
        Ok(())
    }

    /// Its CA's certificate, as a list of CAs for `SSL_CERT_FILE`.
    pub fn ca(&self) -> PathBuf {
        self.directory.path().join("ca.crt")
    }

    /// The scanner on this host, which believes its CA.
    pub fn scanner(&self) -> Result<Command> {
        let mut command = scanner(&self.host)?;
        command.env("SSL_CERT_FILE", self.ca()).env_remove("SSL_CERT_DIR");
        Ok(command)
    }

    /// The mails that were delivered, each once for each recipient, in the order in which they came.
    pub fn mails(&self) -> Result<Vec<String>> {
        let new = self.directory.path().join("mail/new");
        let Ok(entries) = fs::read_dir(new) else { return Ok(Vec::new()) };
        let mut mails = Vec::new();
        for entry in entries {
            let path = entry?.path();
            mails.push((fs::metadata(&path)?.modified()?, fs::read_to_string(&path)?));
        }
        mails.sort();
        Ok(mails.into_iter().map(|(_, mail)| mail).collect())
    }

    /// What it says of itself.
    pub fn log(&self) -> Result<String> {
        let mut log = String::new();
        for name in ["log/main", "log/reject", "log/panic"] {
            match fs::read_to_string(self.directory.path().join(name)) {
                Ok(text) => log += &text,
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
                Err(error) => bail!("{name}: {error}"),
            }
        }
        Ok(log)
    }
}

fn certify(directory: &Path, group: u32) -> Result<()> {
    let mut params = CertificateParams::new(Vec::new())?;
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let key = KeyPair::generate()?;
    fs::write(directory.join("ca.crt"), params.self_signed(&key)?.pem())?;
    let ca = Issuer::new(params, key);
    let key = KeyPair::generate()?;
    let certificate = CertificateParams::new(vec![ADDRESS.to_owned()])?.signed_by(&key, &ca)?;
    fs::write(directory.join("server.crt"), certificate.pem())?;
    let path = directory.join("server.key");
    fs::write(&path, key.serialize_pem())?;
    fs::set_permissions(&path, fs::Permissions::from_mode(0o640))?;
    Ok(chown(&path, None, Some(group))?)
}

fn config(directory: &Path) -> String {
    let (user, password) = LOGIN;
    let (directory, gone) = (directory.display(), GONE.split('@').next().unwrap_or_default());
    format!(
        r#"primary_hostname = mail.example.net
spool_directory = {directory}/spool
log_file_path = {directory}/log/%s
pid_file_path = {directory}/spool/pid
local_interfaces = {ADDRESS}.465 : {ADDRESS}.587 : {ADDRESS}.2525 : 127.0.0.1.25
tls_on_connect_ports = 465
tls_certificate = {directory}/server.crt
tls_privatekey = {directory}/server.key
tls_advertise_hosts = ${{if eq{{$received_port}}{{587}}{{*}}}}
auth_advertise_hosts = ${{if eq{{$tls_in_cipher}}{{}}{{}}{{*}}}}
rfc1413_query_timeout = 0s
keep_environment =
acl_smtp_rcpt = recipient
begin acl
recipient:
  deny !authenticated = *
       !hosts = 127.0.0.1
       message = 5.7.1 log in first
  deny local_parts = {gone}
       message = 5.1.1 no such user
  accept
begin routers
all:
  driver = accept
  transport = keep
begin transports
keep:
  driver = appendfile
  directory = {directory}/mail
  maildir_format
  envelope_to_add
  user = {USER}
begin authenticators
plain:
  driver = plaintext
  public_name = PLAIN
  server_prompts = :
  server_condition = ${{if and{{{{eq{{$auth2}}{{{user}}}}}{{eq{{$auth3}}{{{password}}}}}}}}}
"#
    )
}
