use super::node::agent_url;
use super::sink::PAGERDUTY;
use super::*;
use jiff::civil::date;

const TODAY: Date = date(2026, 11, 23);

fn parse(text: &str) -> Result<Config, ConfigError> {
    Config::parse(text, Path::new("/etc/deadlight/scanner.toml"), TODAY)
}

fn error(text: &str) -> String {
    parse(text).unwrap_err().to_string()
}

/// The template with every commented-out default switched on.
fn uncommented() -> String {
    let is_key = |line: &str| {
        line.strip_prefix("# ").is_some_and(|rest| {
            rest.split_once(" = ").is_some_and(|(key, _)| key.bytes().all(|b| b.is_ascii_lowercase() || b == b'_'))
        })
    };
    TEMPLATE.lines().map(|line| if is_key(line) { &line[2..] } else { line }).collect::<Vec<_>>().join("\n")
}

#[test]
fn the_template_reads_and_shows_the_defaults() {
    let plain = parse(TEMPLATE).unwrap();
    let full = parse(&uncommented()).unwrap();
    assert_eq!(plain.every, Duration::from_secs(900));
    assert_eq!((plain.every, plain.rate, plain.rate_per_node), (full.every, full.rate, full.rate_per_node));
    assert_eq!((&plain.ports, &plain.store, plain.keep), (&full.ports, &full.store, full.keep));
    assert_eq!((plain.lease, plain.seconded), (full.lease, full.seconded));
    assert_eq!(plain.store, Location::File("/etc/deadlight/deadlight.db".into()));
    assert_eq!((plain.signed.as_path(), &plain.signed), (Path::new("/etc/deadlight/permits.json"), &full.signed));
    assert!(matches!(plain.trust, Some(TrustSource::Pki(_))));
    assert_eq!(plain.nodes[0].control_port(), "7443/tcp".parse().ok());
    assert_eq!(full.nodes[0].control_port(), "22/tcp".parse().ok());
    assert_eq!(full.nodes[0].own_ports().to_string(), "22/tcp,7443/tcp");
}

#[test]
fn refuses_by_line_and_nearest_key() {
    let text = error(&TEMPLATE.replace("[sweep]", "[sweep]\nrat = 5"));
    assert!(text.starts_with("/etc/deadlight/scanner.toml, line 16: unknown field `rat`"), "{text}");
    assert!(text.ends_with("did you mean `rate`?"), "{text}");
    for (key, value, wanted) in [
        ("tcp", "\"443-80\"", "`tcp`: range 443-80 runs backwards"),
        ("tcp", "\"0\"", "port 0 is out of range"),
        ("udp", "\"65536\"", "port 65536 is out of range"),
        ("udp", "\"80/tcp\"", "`80/tcp` has other than udp ports"),
        ("every", "\"soon\"", "`every`: `soon` is no duration"),
        ("rate", "0", "nonzero"),
    ] {
        let text = error(&TEMPLATE.replace("[sweep]", &format!("[sweep]\n{key} = {value}")));
        assert!(text.contains("line 16") && text.contains(wanted), "{key} = {value}: {text}");
    }
    let web = |rest: &str| error(&TEMPLATE.replace("[web]\n", &format!("[web]\n{rest}\n")));
    assert!(web("listen = \"[::]:7480\"").contains("is reached from other hosts: it needs `token_file`"));
    assert!(web("token = \"x\"").contains("unknown field `token`"));
    assert!(error(&format!("{TEMPLATE}\nfile = \"state.json\"")).contains("unknown field `file`"));
}

#[test]
fn refuses_what_contradicts_itself() {
    let second = "[[node]]\nname = \"n2\"\naddresses = [\"198.51.100.12\"]\n";
    let with = |node: &str| format!("{TEMPLATE}\n{node}");
    assert!(parse(&with(second)).is_ok());
    assert_eq!(error(&with(&second.replace("n2", "n1"))), "two nodes are named n1");
    let text = error(&with(&second.replace("100.12", "100.11")));
    assert_eq!(text, "address 198.51.100.11 stands twice, the second time at node n2");
    assert_eq!(error(&with(&second.replace("\"198.51.100.12\"", ""))), "node n2 has no addresses");
    let text = error(&with(&format!("{second}control = \"53/udp\"")));
    assert!(text.contains("53/udp is not a TCP port"), "{text}");
    assert_eq!(error("[vantage]\nid = \"a\""), "no [[node]]: there is nothing to sweep");
    assert!(error(&uncommented().replace("\"15m\"", "\"1s\"")).contains("between 10s and 30d"));
    assert!(error(&uncommented().replace("9600h", "1h")).contains("must be at least 24h"));
    assert!(error(&uncommented().replace("sqlite:", "mysql:")).contains("`url` of [store]"));
    assert!(error(&uncommented().replace("20000", "2000000")).contains("rate = 2000000: must be at most"));
    let no_pki = TEMPLATE.split("[pki]").next().unwrap();
    assert_eq!(error(no_pki), "node n1 has an agent, but there is neither [pki] nor [tls]");
    let by_hand = "[tls]\nca = \"ca.crt\"\ncertificate = \"scanner.crt\"\nkey = \"scanner.key\"\n";
    assert!(matches!(parse(&format!("{no_pki}{by_hand}")).unwrap().trust, Some(TrustSource::Files(_))));
    assert!(error(&with(by_hand)).contains("both [pki] and [tls]"));
    let overlap = TEMPLATE
        .replace("[pki]", "[[allow]]\nports = \"443/tcp\"\nnodes = [\"n1\"]\nowner = \"x\"\nreason = \"y\"\n[pki]");
    assert!(error(&overlap).contains("entries 1 and 2 overlap: both cover 443/tcp on n1"));
}

#[test]
fn an_alert_has_one_place_and_no_stranger_listens_in() {
    let with = |alert: &str| parse(&format!("{TEMPLATE}\n[[alert]]\nkind = \"slack\"\n{alert}"));
    let config = with("url_file = \"slack.url\"").unwrap();
    assert_eq!(config.sinks[0].url, UrlSource::File("/etc/deadlight/slack.url".into()));
    assert_eq!(config.sinks[0].name, "slack");
    assert!(with("name = \"ops\"\nurl = \"https://hooks.example.net/x\"").is_ok());
    assert!(
        with("url_file = \"a\"\nkey_file = \"b\"")
            .unwrap_err()
            .to_string()
            .contains("is for kind = \"pagerduty\" alone")
    );
    let pager = |more: &str| parse(&format!("{TEMPLATE}\n[[alert]]\nkind = \"pagerduty\"\n{more}"));
    let config = pager("key_file = \"pagerduty.key\"").unwrap();
    assert_eq!(config.sinks[0].url, UrlSource::Given(PAGERDUTY.parse().unwrap()));
    assert_eq!(config.sinks[0].manner, MannerConfig::Pagerduty { key: "/etc/deadlight/pagerduty.key".into() });
    assert!(pager("").unwrap_err().to_string().contains("kind = \"pagerduty\" needs `key_file`"));
    let text = with("").unwrap_err().to_string();
    assert_eq!(text, "[[alert]] slack needs `url` or `url_file`, and not both");
    let again = "url_file = \"a\"\n[[alert]]\nkind = \"slack\"\nurl_file = \"b\"";
    assert!(with(again).unwrap_err().to_string().contains("two [[alert]] are named slack"));
    for bad in [
        "http://hooks.example.net/secret",
        "http://203.0.113.1/",
        "ftp://x/",
        "hooks.example.net",
        "https://",
        "http://[2001:db8::1]/",
    ] {
        let text = with(&format!("url = {bad:?}")).unwrap_err().to_string();
        assert!(text.starts_with("url of [[alert]] slack is not like") && !text.contains("secret"), "{bad}: {text}");
    }
    for good in [
        "http://127.0.0.1:9093",
        "http://[::1]:9093/x",
        "http://10.1.2.3/",
        "http://localhost/",
        "https://203.0.113.1/",
    ] {
        assert!(sink_url(good).is_some(), "{good}");
    }
}

#[test]
fn a_mail_has_a_sender_recipients_and_a_server_that_is_asked_for_tls() {
    let with = |mail: &str| parse(&format!("{TEMPLATE}\n[[alert]]\nkind = \"email\"\n{mail}"));
    let from = "from = \"Deadlight <deadlight@example.net>\"\n";
    let to = "to = [\"ops@example.net\", \"Night <night@example.net>\"]\n";
    let url = "url = \"smtps://ops%40example.net@mail.example.net:465\"\n";
    let password = "password_file = \"mail.password\"\n";
    let config = with(&format!("{from}{to}{url}{password}")).unwrap();
    let MannerConfig::Email { to: mailboxes, password: file, .. } = &config.sinks[0].manner else {
        panic!("{config:?}")
    };
    assert_eq!((mailboxes.len(), file.as_deref()), (2, Some(Path::new("/etc/deadlight/mail.password"))));
    let sink = &config.sinks[0];
    for good in ["smtp://ops@mail.example.net:587", "smtps://ops@[2001:db8::1]", "smtp://ops@127.0.0.1:25/"] {
        assert!(sink.url(good).is_ok(), "{good}");
    }
    for bad in [
        "https://mail.example.net",
        "smtps://",
        "smtps://ops:s3cret@mail.example.net",
        "smtp://ops@mail.example.net/x",
        "smtp://ops@mail.example.net?tls=none",
        "mail.example.net:465",
    ] {
        let text = sink.url(bad).unwrap_err().to_string();
        assert!(text.starts_with("url of [[alert]] email is not like smtps://") && !text.contains("s3cret"), "{text}");
    }
    for (mail, wanted) in [
        (format!("{from}{url}{password}"), "kind = \"email\" needs `to`"),
        (format!("{from}to = []\n{url}{password}"), "kind = \"email\" needs `to`"),
        (format!("{to}{url}{password}"), "kind = \"email\" needs `from`"),
        (format!("{from}{to}{password}"), "[[alert]] email needs `url` or `url_file`"),
        (format!("{from}{to}{url}"), "and `password_file` need each other"),
        (format!("{from}{to}url = \"smtp://mail.example.net\"\n{password}"), "and `password_file` need each other"),
        (format!("from = \"deadlight\"\n{to}{url}{password}"), "`from` = `deadlight` is not like ops@example.net"),
        (format!("{from}to = [\"grün@example.net\"]\n{url}{password}"), "`to` = `grün@example.net` is not like"),
        (
            format!("{from}to = [\"a\\nb <a@example.net>\"]\n{url}{password}"),
            "`to` = `a\\u{a}b <a@example.net>` is not",
        ),
        (format!("{from}{to}{url}{password}key_file = \"x\""), "`key_file` is for kind = \"pagerduty\" alone"),
        (format!("{from}{to}{url}{password}template_file = \"x\""), "`template_file` is for kind = \"webhook\" alone"),
    ] {
        let text = with(&mail).unwrap_err().to_string();
        assert!(text.contains(wanted), "{mail}: {text}");
    }
    let slack = parse(&format!("{TEMPLATE}\n[[alert]]\nkind = \"slack\"\nurl_file = \"x\"\n{to}"));
    assert_eq!(slack.unwrap_err().to_string(), "[[alert]] slack: `to` is for kind = \"email\" alone");
}

#[test]
fn an_agent_is_an_https_url_with_a_port() {
    for good in ["https://198.51.100.11:7443", "https://[2001:db8::1]:7443/", "https://n1.example.net:443"] {
        assert!(agent_url(good).is_some(), "{good}");
    }
    for bad in [
        "http://198.51.100.11:7443",
        "https://198.51.100.11",
        "https://[2001:db8::1]",
        "https://n1:0x50",
        "https://n1:7443/v1",
        "https://user@n1:7443",
        "https://n1:7443?x=1",
        "198.51.100.11:7443",
        "https://n1:99999",
    ] {
        assert!(agent_url(bad).is_none(), "{bad}");
    }
}

#[test]
fn a_node_that_calls_has_no_port_of_its_own() {
    let text = TEMPLATE.replace("https://198.51.100.11:7443", "pull");
    let config = parse(&text).unwrap();
    assert_eq!(config.nodes[0].agent, Some(Way::Pull));
    assert_eq!((config.nodes[0].control_port(), config.nodes[0].own_ports()), (None, PortSet::default()));
    assert_eq!(config.pull, parse(&uncommented()).unwrap().pull);
    let text = error(&TEMPLATE.replace("https://198.51.100.11:7443", "pul"));
    assert_eq!(text, "agent of node n1: `pul` is not like https://198.51.100.11:7443, nor \"pull\"");
}

#[test]
fn an_expired_entry_is_named_but_not_refused() {
    let text = TEMPLATE.replace("# expires = 2027-01-31", "expires = 2026-01-31");
    let config = parse(&text).unwrap();
    let wanted = "[[allow]] entry 1 (80/tcp,443/tcp) expired on 2026-01-31 and no longer holds";
    assert_eq!(config.expired(TODAY), [wanted]);
}
