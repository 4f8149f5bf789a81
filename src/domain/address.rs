//! Decides which addresses webhooks may reach: the public internet and the networks that the operator
//! allows, except those that the operator denies.
//!
//! A webhook's URL comes from strangers. Without this guard it could lead to the cloud's metadata
//! service (169.254.169.254), the database, or this process's own ports.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net};

use super::shown::quoted;

mod special;

use special::{all_embedded_v4, special_range};

pub use special::Range;

/// The networks that webhooks may reach: the public internet and ALLOW_NETWORKS, except DENY_NETWORKS.
#[derive(Clone, Debug, Default)]
pub struct AllowedNetworks {
    /// The networks that are allowed in addition to the public internet.
    allowed: Vec<IpNet>,
    /// The networks that are denied, even if they are public or allowed.
    denied: Vec<IpNet>,
}

/// An address that is not allowed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Forbidden {
    /// The address.
    pub address: IpAddr,
    /// Why it isn't allowed.
    pub why: ForbiddenBy,
}

/// Why an address is not allowed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ForbiddenBy {
    /// It is not on the public internet, and ALLOW_NETWORKS doesn't allow it.
    Special(Range),
    /// It is in this network of DENY_NETWORKS, or it leads to this IPv4 address that is.
    Denied(IpNet, Option<Ipv4Addr>),
}

impl std::error::Error for Forbidden {}

impl fmt::Display for Forbidden {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let address = self.address;
        match self.why {
            ForbiddenBy::Special(range) => write!(
                formatter,
                "the address {address} is not on the public internet ({range}): allow it by \
                 ALLOW_NETWORKS={address} or a network around it"
            ),
            ForbiddenBy::Denied(network, None) => {
                write!(formatter, "the address {address} is in DENY_NETWORKS ({network})")
            }
            ForbiddenBy::Denied(network, Some(inner)) => write!(
                formatter,
                "the address {address} leads to {inner}, which is in DENY_NETWORKS ({network})"
            ),
        }
    }
}

impl AllowedNetworks {
    /// Reads ALLOW_NETWORKS: networks in CIDR notation or single addresses, separated by commas. They
    /// are allowed in addition to the public internet.
    ///
    /// # Errors
    /// One line that names what can't be read.
    pub fn parse(text: &str) -> Result<Self, String> {
        Ok(Self { allowed: read_networks(text)?, denied: Vec::new() })
    }

    /// Denies these networks, even if they are public or allowed.
    ///
    /// # Errors
    /// One line that names what can't be read.
    pub fn denying(self, text: &str) -> Result<Self, String> {
        Ok(Self { denied: read_networks(text)?, ..self })
    }

    /// Checks whether webhooks may reach an address.
    ///
    /// # Errors
    /// [`Forbidden`], which names the range or the network.
    pub fn check(&self, address: IpAddr) -> Result<(), Forbidden> {
        // The kernel treats an IPv4-mapped address as the IPv4 address, and so does this check: `::/0`
        // neither allows nor denies it.
        let address = address.to_canonical();
        let why = match self.denied(address) {
            Some(denied) => denied,
            None => {
                let Some(range) = special_range(address) else { return Ok(()) };
                if self.allowed.iter().any(|network| network.contains(&address)) {
                    return Ok(());
                }
                ForbiddenBy::Special(range)
            }
        };
        Err(Forbidden { address, why })
    }

    fn denied(&self, address: IpAddr) -> Option<ForbiddenBy> {
        if self.denied.is_empty() {
            return None;
        }
        let around = |address: IpAddr| self.denied.iter().find(|it| it.contains(&address)).copied();
        // Connecting to the unspecified address reaches the local host.
        let reached = match address.to_canonical() {
            IpAddr::V4(v4) if v4.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
            IpAddr::V6(v6) if v6.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
            _ => address,
        };
        if let Some(network) = around(address).or_else(|| around(reached)) {
            return Some(ForbiddenBy::Denied(network, None));
        }
        let IpAddr::V6(outer) = address else { return None };
        all_embedded_v4(outer)
            .find_map(|inner| Some(ForbiddenBy::Denied(around(inner.into())?, Some(inner))))
    }
}

fn read_networks(text: &str) -> Result<Vec<IpNet>, String> {
    let networks = text.split(',').map(str::trim).filter(|part| !part.is_empty());
    networks
        .map(|part| {
            // `IpNet` reads 010 as ten, other parsers read it as octal eight. So the address is parsed
            // strictly.
            let address = part.split('/').next().and_then(|it| it.parse::<IpAddr>().ok());
            let network = match part.contains('/') {
                true => address.and_then(|_| part.parse().ok()),
                false => address.map(IpNet::from),
            };
            network
                .map(canonical)
                .ok_or_else(|| format!("{} is not a network such as 10.0.0.0/8", quoted(part)))
        })
        .collect()
}

/// A network of IPv4-mapped addresses becomes the IPv4 network.
fn canonical(network: IpNet) -> IpNet {
    let IpNet::V6(v6) = network else { return network };
    let mapped = v6.addr().to_ipv4_mapped();
    let prefix = v6.prefix_len().checked_sub(96);
    let v4 = mapped.zip(prefix).and_then(|(address, prefix)| Ipv4Net::new(address, prefix).ok());
    v4.map_or(network, IpNet::V4)
}

#[cfg(test)]
mod tests;
