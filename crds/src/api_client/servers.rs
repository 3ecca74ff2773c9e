//! Which API servers there are, and which of them is dialled first.

use std::{
    fmt,
    net::SocketAddr,
    str::FromStr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use http::Uri;

/// Address of an API server: scheme, host and port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ApiServer(Uri);

/// A text that is no address of an API server.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is no address of an API server: {problem}, write it as https://HOST:PORT")]
pub struct InvalidApiServer {
    text: String,
    problem: &'static str,
}

impl ApiServer {
    /// The server of a URL, whatever its path.
    pub(super) fn of(url: &Uri) -> Result<Self, &'static str> {
        let scheme = url.scheme_str().ok_or("it has no scheme")?;
        let default_port = match scheme {
            "https" => 443,
            "http" => 80,
            _ => return Err("its scheme is neither https nor http"),
        };
        let host = url.host().filter(|host| !host.is_empty()).ok_or("it has no host")?;
        // A port that is too large reads as none.
        let names_port = url.authority().is_some_and(|authority| !authority.as_str().ends_with(host));
        let port = match url.port_u16() {
            None if names_port => return Err("its port is no number from 1 to 65535"),
            port => port.unwrap_or(default_port),
        };
        let authority = format!("{host}:{port}");
        let uri = Uri::builder().scheme(scheme).authority(authority).path_and_query("/").build();
        uri.map(Self).map_err(|_| "its host or port is not valid")
    }

    /// What is dialled.
    pub(super) fn uri(&self) -> Uri {
        self.0.clone()
    }

    /// The host, an IPv6 address without its brackets.
    pub(super) fn host(&self) -> &str {
        self.0.host().unwrap_or_default().trim_start_matches('[').trim_end_matches(']')
    }
}

impl FromStr for ApiServer {
    type Err = InvalidApiServer;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let invalid = |problem| InvalidApiServer { text: text.to_owned(), problem };
        let url: Uri = text.parse().map_err(|_| invalid("it is no URL"))?;
        if url.authority().is_some_and(|authority| authority.as_str().contains('@')) {
            return Err(invalid("credentials do not belong into it"));
        }
        if url.path() != "/" && !url.path().is_empty() || url.query().is_some() {
            return Err(invalid("it has a path"));
        }
        if url.scheme_str() == Some("http") {
            return Err(invalid("a token must not travel unencrypted"));
        }
        Self::of(&url).map_err(invalid)
    }
}

impl TryFrom<SocketAddr> for ApiServer {
    type Error = InvalidApiServer;

    fn try_from(address: SocketAddr) -> Result<Self, Self::Error> {
        format!("https://{address}").parse()
    }
}

impl fmt::Display for ApiServer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let authority = self.0.authority().map(http::uri::Authority::as_str).unwrap_or_default();
        write!(f, "{}://{authority}", self.0.scheme_str().unwrap_or_default())
    }
}

/// A comma-separated list of API servers, as options and environment variables hold it; may be empty.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ApiServerList(pub Vec<ApiServer>);

impl FromStr for ApiServerList {
    type Err = InvalidApiServer;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let parts = text.split(',').map(str::trim).filter(|part| !part.is_empty());
        parts.map(str::parse).collect::<Result<_, _>>().map(Self)
    }
}

/// The API servers that a client dials. Clones share one list.
///
/// Configured addresses come before learned ones. The one that answered last is dialled first, until it
/// does not answer: there is no way back to an earlier one by itself.
#[derive(Clone, Debug, Default)]
pub struct ApiServers(Arc<Mutex<Known>>);

#[derive(Debug, Default)]
struct Known {
    configured: Vec<ApiServer>,
    learned: Vec<ApiServer>,
    current: Option<ApiServer>,
    /// A proxy in front has paths of its own, which the servers behind it do not have.
    fixed: bool,
}

impl ApiServers {
    /// Knows the configured ones, in the order in which they are tried.
    pub(super) fn new(configured: Vec<ApiServer>, fixed: bool) -> Self {
        Self(Arc::new(Mutex::new(Known { configured, fixed, ..Known::default() })))
    }

    /// Replaces the addresses that were learned from the cluster.
    pub fn learn(&self, learned: impl IntoIterator<Item = SocketAddr>) {
        let learned = learned.into_iter().filter_map(|address| ApiServer::try_from(address).ok()).collect();
        let mut known = self.lock();
        if !known.fixed {
            known.learned = learned;
        }
    }

    /// All of them, in the order in which they are dialled.
    pub fn list(&self) -> Vec<ApiServer> {
        let known = self.lock();
        let mut servers: Vec<ApiServer> = Vec::new();
        for server in known.configured.iter().chain(&known.learned) {
            if !servers.contains(server) {
                servers.push(server.clone());
            }
        }
        let first = known.current.as_ref().and_then(|current| servers.iter().position(|s| s == current));
        servers.rotate_left(first.unwrap_or(0));
        servers
    }

    /// The one that answered last, if any did.
    pub fn current(&self) -> Option<ApiServer> {
        self.lock().current.clone()
    }

    /// Notes the one that answered. True when it is another than before.
    pub(super) fn answered(&self, server: &ApiServer) -> bool {
        let mut known = self.lock();
        let moved = known.current.as_ref() != Some(server);
        if moved {
            known.current = Some(server.clone());
        }
        moved
    }

    fn lock(&self) -> MutexGuard<'_, Known> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn servers(texts: &[&str]) -> Vec<ApiServer> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    fn texts(servers: &ApiServers) -> Vec<String> {
        servers.list().iter().map(ToString::to_string).collect()
    }

    #[test]
    fn an_address_is_scheme_host_and_port_and_nothing_else() {
        for (text, address) in [
            ("https://192.0.2.1:6443", "https://192.0.2.1:6443"),
            ("https://[2001:db8::1]:6443/", "https://[2001:db8::1]:6443"),
            ("https://api.example.com", "https://api.example.com:443"),
        ] {
            assert_eq!(text.parse::<ApiServer>().unwrap().to_string(), address);
        }
        for (text, problem) in [
            ("192.0.2.1:6443", "no scheme"),
            ("http://192.0.2.1:6443", "unencrypted"),
            ("https://192.0.2.1:6443/k8s", "path"),
            ("https://me:secret@192.0.2.1", "credentials"),
            ("ftp://192.0.2.1", "scheme"),
            ("", "no URL"),
            ("https://192.0.2.1:66000", "port"),
        ] {
            let error = text.parse::<ApiServer>().unwrap_err().to_string();
            assert!(error.contains(problem) && error.ends_with("write it as https://HOST:PORT"), "{error}");
        }
    }

    #[test]
    fn a_list_is_separated_by_commas_and_may_be_empty() {
        let list = |text: &str| text.parse::<ApiServerList>().unwrap().0;
        assert_eq!(list(" "), []);
        let two = servers(&["https://192.0.2.1:6443", "https://192.0.2.2:6443"]);
        assert_eq!(list("https://192.0.2.1:6443, https://192.0.2.2:6443,"), two);
    }

    #[test]
    fn the_one_that_answered_is_dialled_first_until_another_does() {
        let known = ApiServers::new(servers(&["https://192.0.2.1:6443", "https://192.0.2.2:6443"]), false);
        assert!(known.answered(&servers(&["https://192.0.2.2:6443"])[0]));
        assert!(!known.answered(&servers(&["https://192.0.2.2:6443"])[0]));
        assert_eq!(texts(&known), ["https://192.0.2.2:6443", "https://192.0.2.1:6443"]);
    }

    #[test]
    fn learned_addresses_come_after_the_configured_and_replace_each_other() {
        let known = ApiServers::new(servers(&["https://192.0.2.1:6443"]), false);
        let address = |host: u8| SocketAddr::from(([192, 0, 2, host], 6443));
        known.learn([address(1), address(2)]);
        assert_eq!(texts(&known), ["https://192.0.2.1:6443", "https://192.0.2.2:6443"]);
        known.answered(&servers(&["https://192.0.2.2:6443"])[0]);
        known.learn([address(3)]);
        assert_eq!(texts(&known), ["https://192.0.2.1:6443", "https://192.0.2.3:6443"]);
    }

    #[test]
    fn behind_a_proxy_with_paths_nothing_is_learned() {
        let known = ApiServers::new(servers(&["https://192.0.2.1:6443"]), true);
        known.learn([SocketAddr::from(([192, 0, 2, 2], 6443))]);
        assert_eq!(texts(&known), ["https://192.0.2.1:6443"]);
    }
}
