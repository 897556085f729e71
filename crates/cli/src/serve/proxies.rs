//! Whose address a request comes from: X-Forwarded-For says what the caller likes, but for what our own proxies have added.

use std::net::{IpAddr, SocketAddr};

use axum::http::HeaderMap;
use ipnet::IpNet;

/// The networks of the proxies that are believed.
#[derive(Debug, Clone)]
pub struct Proxies(pub Vec<IpNet>);

impl Proxies {
    /// The caller's address: that of the connection, unless it is a trusted proxy's; then the rightmost in X-Forwarded-For that is not one
    /// itself, or the leftmost if all are. `None` if a trusted proxy wrote what is no address.
    pub fn caller(&self, peer: SocketAddr, headers: &HeaderMap) -> Option<IpAddr> {
        let mut caller = peer.ip().to_canonical();
        // The lines of a header that comes several times stand for one list, in their order.
        for line in headers.get_all("X-Forwarded-For").iter().rev() {
            for address in line.to_str().ok()?.rsplit(',').map(str::trim).filter(|address| !address.is_empty()) {
                if !self.trust(caller) {
                    return Some(caller);
                }
                caller = parse(address)?;
            }
            if !self.trust(caller) {
                return Some(caller);
            }
        }
        Some(caller)
    }

    fn trust(&self, address: IpAddr) -> bool {
        self.0.iter().any(|network| network.contains(&address))
    }
}

/// An address, which some proxies write with its port.
fn parse(text: &str) -> Option<IpAddr> {
    let bare = text.strip_prefix('[').and_then(|text| text.strip_suffix(']')).unwrap_or(text);
    let address: Option<IpAddr> = bare.parse().ok();
    address.or_else(|| Some(text.parse::<SocketAddr>().ok()?.ip())).map(|address| address.to_canonical())
}

/// A network, or one address.
///
/// # Errors
/// What is accepted.
pub fn network(text: &str) -> Result<IpNet, &'static str> {
    let network = text.parse().or_else(|_| text.parse::<IpAddr>().map(IpNet::from));
    network.map_err(|_| "a network such as 10.0.0.0/8 or fd00::/8, or an address")
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing)]
mod tests {
    use super::*;

    fn check(peer: &str, lines: &[&str], caller: Option<&str>) {
        let proxies = Proxies(["127.0.0.0/8", "::1", "10.0.0.0/8"].map(|text| network(text).unwrap()).into());
        let mut headers = HeaderMap::new();
        for line in lines {
            headers.append("X-Forwarded-For", line.parse().unwrap());
        }
        let found = proxies.caller(SocketAddr::new(peer.parse().unwrap(), 80), &headers);
        assert_eq!(found.map(|found| found.to_string()).as_deref(), caller, "{peer}, {lines:?}");
    }

    #[test]
    fn the_caller_is_the_nearest_that_is_no_proxy_of_ours() {
        check("192.0.2.1", &[], Some("192.0.2.1"));
        check("192.0.2.1", &["198.51.100.1"], Some("192.0.2.1"));
        check("192.0.2.1", &["garbage"], Some("192.0.2.1"));
        check("127.0.0.1", &[], Some("127.0.0.1"));
        check("127.0.0.1", &["", " , "], Some("127.0.0.1"));
        check("127.0.0.1", &["198.51.100.1"], Some("198.51.100.1"));
        check("::ffff:127.0.0.1", &["::ffff:198.51.100.1"], Some("198.51.100.1"));
        check("::1", &["2001:db8::1"], Some("2001:db8::1"));
        check("127.0.0.1", &["203.0.113.9, 198.51.100.1"], Some("198.51.100.1"));
        check("127.0.0.1", &["203.0.113.9, 198.51.100.1, 10.0.0.1,10.0.0.2"], Some("198.51.100.1"));
        check("127.0.0.1", &["203.0.113.9", "198.51.100.1, 10.0.0.1"], Some("198.51.100.1"));
        check("127.0.0.1", &["198.51.100.1", "10.0.0.1"], Some("198.51.100.1"));
        check("127.0.0.1", &["10.0.0.9, 10.0.0.1"], Some("10.0.0.9"));
        check("127.0.0.1", &["198.51.100.1:1234"], Some("198.51.100.1"));
        check("127.0.0.1", &["[2001:db8::1]:1234"], Some("2001:db8::1"));
        check("127.0.0.1", &["[2001:db8::1]"], Some("2001:db8::1"));
        // What a stranger wrote is not even looked at; what a proxy of ours wrote must be an address.
        check("127.0.0.1", &["garbage, 198.51.100.1"], Some("198.51.100.1"));
        check("127.0.0.1", &["198.51.100.1, unknown"], None);
    }
}
