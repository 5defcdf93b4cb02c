//! The way of a packet from outside through the rules of others.

use std::collections::BTreeSet;

use deadlight_shared::Port;

use crate::firewall::DockerRules;

/// Rules that name `port`, and the jumps that lead to them, in the order in which a packet meets them.
pub fn path(port: Port, rules: &DockerRules) -> Vec<String> {
    let (protocol, number) = (port.protocol, port.number);
    let published = format!("-p {protocol} -m {protocol} --dport {number} ");
    let inside: Vec<String> = rules
        .dnat
        .iter()
        .filter(|dnat| dnat.port == port && dnat.chain == "DOCKER")
        .map(|dnat| format!("-d {}/{} ", dnat.to, if dnat.to.is_ipv4() { 32 } else { 128 }))
        .collect();
    let names = |line: &str| {
        line.contains(&published)
            || line.contains("-t filter -A DOCKER ") && inside.iter().any(|to| line.contains(to.as_str()))
    };
    let mut path = Vec::new();
    for tool in ["iptables", "ip6tables"] {
        for (table, entry) in [("raw", "PREROUTING"), ("nat", "PREROUTING"), ("filter", "INPUT"), ("filter", "FORWARD")]
        {
            let walk = Walk { rules, prefix: format!("{tool} -t {table} -A "), names: &names };
            path.extend(walk.through(entry, &mut BTreeSet::new()));
        }
    }
    path
}

struct Walk<'a> {
    rules: &'a DockerRules,
    prefix: String,
    names: &'a dyn Fn(&str) -> bool,
}

impl<'a> Walk<'a> {
    /// What a packet meets in `chain` and in those that it leads to; none of it twice.
    fn through(&self, chain: &'a str, seen: &mut BTreeSet<&'a str>) -> Vec<String> {
        if !seen.insert(chain) {
            return Vec::new();
        }
        let head = format!("{}{chain} ", self.prefix);
        let mut path = Vec::new();
        for line in self.rules.lines.iter().filter(|line| line.starts_with(&head)) {
            if (self.names)(line) {
                path.push(line.clone());
            } else if let Some(target) = target(line) {
                let inner = self.through(target, seen);
                if !inner.is_empty() {
                    path.push(line.clone());
                    path.extend(inner);
                }
            }
        }
        path
    }
}

/// Where a rule jumps to.
fn target(line: &str) -> Option<&str> {
    line.split(' ').skip_while(|word| *word != "-j" && *word != "-g").nth(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn jumps_that_lead_to_the_port_belong_to_the_way() {
        let lines = [
            "iptables -t nat -A OUTPUT -j DOCKER-INGRESS",
            "iptables -t nat -A PREROUTING -m addrtype --dst-type LOCAL -j DOCKER-INGRESS",
            "iptables -t nat -A DOCKER-INGRESS -p tcp -m tcp --dport 80801 -j DNAT --to-destination 172.18.0.2:80801",
            "iptables -t nat -A DOCKER-INGRESS -p tcp -m tcp --dport 8080 -j DNAT --to-destination 172.18.0.2:8080",
            "iptables -t filter -A FORWARD -j DOCKER-USER",
            "iptables -t filter -A FORWARD -j DOCKER-FORWARD",
            "iptables -t filter -A DOCKER-FORWARD -j DOCKER-INGRESS",
            "iptables -t filter -A DOCKER-INGRESS -p tcp -m tcp --dport 8080 -j ACCEPT",
            "iptables -t filter -A DOCKER-INGRESS -j DOCKER-FORWARD",
        ];
        let rules = DockerRules { lines: lines.map(str::to_owned).into(), ..DockerRules::default() };
        let path = path("8080/tcp".parse().unwrap(), &rules);
        assert_eq!(path, [lines[1], lines[3], lines[5], lines[6], lines[7]]);
    }
}
