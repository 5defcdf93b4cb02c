//! The node's interfaces: which face the outside, and which addresses they hold.

use std::collections::BTreeSet;
use std::net::IpAddr;

/// Interfaces with a default route, in either family: what faces the outside unless the
/// configuration says otherwise. Source: `/proc/net/route` and `/proc/net/ipv6_route`.
pub fn with_default_route() -> BTreeSet<String> {
    let read = |path| std::fs::read_to_string(path).unwrap_or_default();
    let mut names = default_routes_v4(&read("/proc/self/net/route"));
    names.extend(default_routes_v6(&read("/proc/self/net/ipv6_route")));
    names
}

/// All addresses of the node with the interface that holds each.
pub fn addresses() -> Vec<(String, IpAddr)> {
    pnet::datalink::interfaces()
        .into_iter()
        .flat_map(|interface| {
            let name = interface.name;
            interface.ips.into_iter().map(move |net| (name.clone(), net.ip()))
        })
        .collect()
}

/// Whether `name` can be an interface name, and is safe inside a rule.
pub fn is_valid_name(name: &str) -> bool {
    (1..=15).contains(&name.len()) && name.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-@".contains(&b))
}

/// Columns: Iface Destination Gateway Flags RefCnt Use Metric Mask …, numbers in hexadecimal.
fn default_routes_v4(table: &str) -> BTreeSet<String> {
    const REJECT: u32 = 0x200;
    let default = |line: &str| {
        let columns: Vec<&str> = line.split_whitespace().collect();
        let [name, destination, _, flags, _, _, _, mask, ..] = columns[..] else { return None };
        let rejects = u32::from_str_radix(flags, 16).ok()? & REJECT != 0;
        (destination == "00000000" && mask == "00000000" && !rejects).then(|| name.to_owned())
    };
    table.lines().skip(1).filter_map(default).collect()
}

/// Columns: destination, its prefix length, source, its prefix length, next hop, metric,
/// references, uses, flags, device; numbers in hexadecimal.
fn default_routes_v6(table: &str) -> BTreeSet<String> {
    let default = |line: &str| {
        let columns: Vec<&str> = line.split_whitespace().collect();
        let [destination, "00", .., name] = columns[..] else { return None };
        (destination.bytes().all(|b| b == b'0') && name != "lo").then(|| name.to_owned())
    };
    table.lines().filter_map(default).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_the_default_routes_of_both_families() {
        let v4 = "Iface\tDestination\tGateway\tFlags\tRefCnt\tUse\tMetric\tMask\tMTU\tWindow\tIRTT\n\
                  eth0\t00000000\t016433C6\t0003\t0\t0\t0\t00000000\t0\t0\t0\n\
                  docker0\t000011AC\t00000000\t0001\t0\t0\t0\t0000FFFF\t0\t0\t0\n\
                  *\t00000000\t00000000\t0200\t0\t0\t0\t00000000\t0\t0\t0\n";
        assert_eq!(default_routes_v4(v4), ["eth0".to_owned()].into());
        let zero = "0".repeat(32);
        let v6 = format!(
            "{zero} 00 {zero} 00 20010db8005100000000000000000001 00000400 00000001 00000000 00000003     eth1\n\
             {zero} 00 {zero} 00 {zero} ffffffff 00000001 00000000 00200200       lo\n\
             fe800000000000000000000000000000 40 {zero} 00 {zero} 00000100 00000001 00000000 00000001     eth0\n"
        );
        assert_eq!(default_routes_v6(&v6), ["eth1".to_owned()].into());
    }

    #[test]
    fn names_are_safe_in_a_rule() {
        assert!(is_valid_name("eth0") && is_valid_name("bond0.100") && is_valid_name("br-lan"));
        for bad in ["", "eth0\"; flush", "a234567890123456", "eth 0", "{"] {
            assert!(!is_valid_name(bad), "{bad}");
        }
    }
}
