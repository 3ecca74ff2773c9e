//! stub
pub mod sysctl {
    /// s
    pub fn ensure() -> Result<bool, String> {
        for (p, v) in [
            ("net/ipv4/vs/conntrack", "1"),
            ("net/ipv4/vs/expire_nodest_conn", "1"),
            ("net/ipv4/vs/expire_quiescent_template", "1"),
            ("net/ipv4/ip_forward", "1"),
            ("net/ipv6/conf/all/forwarding", "1"),
        ] {
            std::fs::write(format!("/proc/sys/{p}"), v).map_err(|e| format!("{p}: {e}"))?;
        }
        Ok(false)
    }
    /// s
    pub fn conntrack_established_timeout() -> Option<u32> {
        std::fs::read_to_string("/proc/sys/net/netfilter/nf_conntrack_tcp_timeout_established")
            .ok()?
            .trim()
            .parse()
            .ok()
    }
}
