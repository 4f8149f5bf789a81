//! The addresses outside the public internet, and the addresses that lead to another address.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

const fn v4(a: u8, b: u8, c: u8, d: u8, prefix: u8) -> Ipv4Net {
    Ipv4Net::new_assert(Ipv4Addr::new(a, b, c, d), prefix)
}

const fn v6(segments: [u16; 8], prefix: u8) -> Ipv6Net {
    let [a, b, c, d, e, f, g, h] = segments;
    Ipv6Net::new_assert(Ipv6Addr::new(a, b, c, d, e, f, g, h), prefix)
}

/// The IPv4 ranges outside the public internet: IANA's special-purpose address registry (RFC 6890),
/// multicast, and one address that only looks public. The few blocks of the registry that are globally
/// reachable serve routers, not webhooks, so they are refused too.
///
/// Of nested ranges the smaller one comes first, because its name is more specific.
pub(super) const SPECIAL_V4: [(Ipv4Net, &str); 20] = [
    (v4(0, 0, 0, 0, 8), "this network"),
    (v4(10, 0, 0, 0, 8), "private"),
    (v4(100, 64, 0, 0, 10), "shared address space"),
    (v4(127, 0, 0, 0, 8), "loopback"),
    // In every Azure virtual machine this address is the physical host, which knows the guest's secrets.
    (v4(168, 63, 129, 16, 32), "Azure's own"),
    (v4(169, 254, 0, 0, 16), "link-local: cloud metadata and credentials"),
    (v4(172, 16, 0, 0, 12), "private"),
    (v4(192, 0, 0, 0, 24), "protocol assignments"),
    (v4(192, 0, 2, 0, 24), "documentation"),
    (v4(192, 31, 196, 0, 24), "AS112"),
    (v4(192, 52, 193, 0, 24), "AMT"),
    (v4(192, 88, 99, 0, 24), "6to4 relays"),
    (v4(192, 168, 0, 0, 16), "private"),
    (v4(192, 175, 48, 0, 24), "AS112"),
    (v4(198, 18, 0, 0, 15), "benchmarking"),
    (v4(198, 51, 100, 0, 24), "documentation"),
    (v4(203, 0, 113, 0, 24), "documentation"),
    (v4(224, 0, 0, 0, 4), "multicast"),
    (v4(255, 255, 255, 255, 32), "broadcast"),
    (v4(240, 0, 0, 0, 4), "reserved"),
];

/// The IPv6 ranges outside the public internet. Only 2000::/3 is allocated as global unicast. The addresses
/// outside it that are in none of these ranges are refused too.
pub(super) const SPECIAL_V6: [(Ipv6Net, &str); 17] = [
    (v6([0, 0, 0, 0, 0, 0, 0, 0], 128), "unspecified"),
    (v6([0, 0, 0, 0, 0, 0, 0, 1], 128), "loopback"),
    (V4_COMPATIBLE, "IPv4-compatible"),
    (V4_TRANSLATED, "IPv4-translated"),
    (LOCAL_NAT64, "local NAT64"),
    (v6([0x100, 0, 0, 0, 0, 0, 0, 0], 64), "discard-only"),
    (v6([0x100, 0, 0, 1, 0, 0, 0, 0], 64), "dummy prefix"),
    (TEREDO, "Teredo"),
    (v6([0x2001, 0, 0, 0, 0, 0, 0, 0], 23), "protocol assignments"),
    (v6([0x2001, 0xdb8, 0, 0, 0, 0, 0, 0], 32), "documentation"),
    (v6([0x2620, 0x4f, 0x8000, 0, 0, 0, 0, 0], 48), "AS112"),
    (v6([0x3fff, 0, 0, 0, 0, 0, 0, 0], 20), "documentation"),
    (v6([0x5f00, 0, 0, 0, 0, 0, 0, 0], 16), "segment routing"),
    (v6([0xfc00, 0, 0, 0, 0, 0, 0, 0], 7), "unique local"),
    (v6([0xfe80, 0, 0, 0, 0, 0, 0, 0], 10), "link-local"),
    (v6([0xfec0, 0, 0, 0, 0, 0, 0, 0], 10), "site-local"),
    (v6([0xff00, 0, 0, 0, 0, 0, 0, 0], 8), "multicast"),
];

const GLOBAL_V6: Ipv6Net = v6([0x2000, 0, 0, 0, 0, 0, 0, 0], 3);
const V4_COMPATIBLE: Ipv6Net = v6([0, 0, 0, 0, 0, 0, 0, 0], 96);
const V4_TRANSLATED: Ipv6Net = v6([0, 0, 0, 0, 0xffff, 0, 0, 0], 96);
const LOCAL_NAT64: Ipv6Net = v6([0x64, 0xff9b, 1, 0, 0, 0, 0, 0], 48);
const TEREDO: Ipv6Net = v6([0x2001, 0, 0, 0, 0, 0, 0, 0], 32);
const NAT64: Ipv6Net = v6([0x64, 0xff9b, 0, 0, 0, 0, 0, 0], 96);
const SIX_TO_FOUR: Ipv6Net = v6([0x2002, 0, 0, 0, 0, 0, 0, 0], 16);

/// A range of addresses that are not the public internet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Range {
    /// What the range is for, or that it isn't allocated.
    pub name: &'static str,
    /// The network. It may contain not the address itself, but the one to which that leads.
    pub network: Option<IpNet>,
}

impl fmt::Display for Range {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.name)?;
        self.network.map_or(Ok(()), |network| write!(formatter, ", {network}"))
    }
}

/// The special-purpose range that an address lies in or leads to; `None` on the public internet.
pub(super) fn special_range(address: IpAddr) -> Option<Range> {
    match address {
        IpAddr::V4(address) => special_v4(address),
        IpAddr::V6(address) => {
            let named = SPECIAL_V6.iter().find(|(network, _)| network.contains(&address));
            if let Some((network, name)) = named {
                return Some(Range { name, network: Some((*network).into()) });
            }
            match embedded_v4(address) {
                Some(inner) => special_v4(inner),
                None if GLOBAL_V6.contains(&address) => None,
                None => Some(Range { name: "outside 2000::/3", network: None }),
            }
        }
    }
}

pub(super) fn special_v4(address: Ipv4Addr) -> Option<Range> {
    let (network, name) = SPECIAL_V4.iter().find(|(network, _)| network.contains(&address))?;
    Some(Range { name, network: Some((*network).into()) })
}

/// The IPv4 address at which packets to this address arrive: IPv4-mapped (RFC 4291), NAT64's well-known
/// prefix (RFC 6052), 6to4 (RFC 3056), and ISATAP (RFC 5214), which any network may use internally.
fn embedded_v4(address: Ipv6Addr) -> Option<Ipv4Addr> {
    let octets = address.octets();
    let at = |start: usize| {
        Ipv4Addr::new(octets[start], octets[start + 1], octets[start + 2], octets[start + 3])
    };
    let is_isatap = matches!(address.segments(), [.., 0 | 0x200, 0x5efe, _, _]);
    if SIX_TO_FOUR.contains(&address) {
        Some(at(2))
    } else if NAT64.contains(&address) || is_isatap && GLOBAL_V6.contains(&address) {
        Some(at(12))
    } else {
        address.to_ipv4_mapped()
    }
}

/// Every IPv4 address that an IPv6 address may lead to, also in the ranges that are refused by default
/// but can be allowed.
pub(super) fn all_embedded_v4(address: Ipv6Addr) -> impl Iterator<Item = Ipv4Addr> {
    let octets = address.octets();
    let at = move |places: [usize; 4]| Ipv4Addr::from(places.map(|place| octets[place]));
    let last = || at([12, 13, 14, 15]);
    let is_in = |network: Ipv6Net| network.contains(&address);
    let found = if is_in(LOCAL_NAT64) {
        // RFC 6052 skips bits 64 to 71; after a prefix of 96 bits, the address comes last.
        [Some(at([6, 7, 9, 10])), Some(last())]
    } else if is_in(TEREDO) {
        // RFC 4380: the client's address, inverted bit by bit, and its server's address.
        [Some(Ipv4Addr::from(!u32::from(last()))), Some(at([4, 5, 6, 7]))]
    } else if is_in(V4_COMPATIBLE) || is_in(V4_TRANSLATED) {
        [Some(last()), None]
    } else {
        [embedded_v4(address), None]
    };
    found.into_iter().flatten()
}
