//! Over real sockets, as a load balancer or a scraper would.

use std::time::Instant;

use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};

use super::*;
use crate::{bring_up::Refused, status::Dataplane};

struct Served {
    endpoints: Endpoints,
    health: SocketAddr,
    introspection: SocketAddr,
    stop: watch::Sender<bool>,
    servers: Vec<tokio::task::JoinHandle<()>>,
}

impl Served {
    fn start() -> Self {
        let requests = HealthRequests::default();
        let mut registry = Registry::default();
        requests.register(registry.sub_registry_with_prefix("kubeproxy"));
        let registry = Arc::new(registry);
        let endpoints = Endpoints {
            shared: Shared::default(),
            families: Family::ALL.into(),
            mode: Arc::new(|| "ipvs".to_owned()),
            metrics: Arc::new(move || crate::metrics::render(&registry)),
            requests,
        };
        let (stop, stopped) = watch::channel(false);
        let mut addresses = Vec::new();
        let mut servers = Vec::new();
        for router in [health_router(endpoints.clone()), introspection_router(endpoints.clone())] {
            let listener = bind("127.0.0.1:0".parse().unwrap()).unwrap();
            addresses.push(listener.local_addr().unwrap());
            servers.push(tokio::spawn(serve(listener, router, stopped.clone())));
        }
        Self { endpoints, health: addresses[0], introspection: addresses[1], stop, servers }
    }

    fn update(&self, change: impl FnOnce(&mut Dataplane)) {
        self.endpoints.shared.update(change);
    }

    async fn health(&self, path: &str) -> Answer {
        get(self.health, path).await
    }

    async fn introspect(&self, path: &str) -> Answer {
        get(self.introspection, path).await
    }
}

struct Answer {
    status: u16,
    head: String,
    body: String,
}

impl Answer {
    fn json(&self) -> Value {
        assert!(self.head.contains("content-type: application/json"), "{}", self.head);
        serde_json::from_str(&self.body).unwrap()
    }
}

async fn get(address: SocketAddr, path: &str) -> Answer {
    let mut stream = TcpStream::connect(address).await.unwrap();
    let request = format!("GET {path} HTTP/1.1\r\nHost: node\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).await.unwrap();
    let (head, body) = text.split_once("\r\n\r\n").unwrap();
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    Answer { status, head: head.to_owned(), body: body.to_owned() }
}

#[tokio::test]
async fn health_is_computed_when_asked_and_counted_by_its_code() {
    let served = Served::start();
    served.update(|dataplane| dataplane.eligible = Some(true));
    let answer = served.health("/healthz").await;
    assert_eq!(answer.status, 200);
    assert!(answer.head.contains("x-content-type-options: nosniff"), "{}", answer.head);
    assert_eq!(answer.json()["nodeEligible"], true);

    served.update(|dataplane| dataplane.eligible = Some(false));
    assert_eq!(served.health("/healthz").await.status, 503);
    let live = served.health("/livez").await;
    assert_eq!(live.status, 200);
    assert_eq!(live.json()["healthy"], true);

    served.update(|dataplane| dataplane.queued_since = Instant::now().checked_sub(Duration::from_secs(61)));
    let late = served.health("/livez").await;
    assert_eq!((late.status, &late.json()["status"]["IPv6"]["healthy"]), (503, &json!(false)));

    let metrics = served.introspect("/metrics").await;
    assert!(metrics.head.contains("content-type: application/openmetrics-text; version=1.0.0"));
    for line in [
        "kubeproxy_proxy_healthz_total{code=\"200\"} 1",
        "kubeproxy_proxy_healthz_total{code=\"503\"} 1",
        "kubeproxy_proxy_livez_total{code=\"200\"} 1",
        "kubeproxy_proxy_livez_total{code=\"503\"} 1",
    ] {
        assert!(metrics.body.lines().any(|l| l == line), "no {line} in\n{}", metrics.body);
    }
}

#[tokio::test]
async fn a_node_that_nobody_knows_is_not_eligible() {
    let served = Served::start();
    let answer = served.health("/healthz").await;
    assert_eq!((answer.status, &answer.json()["nodeEligible"]), (503, &json!(false)));
}

#[tokio::test]
async fn ready_is_only_what_is_synced_programmed_and_fit_and_the_rest_is_told() {
    let served = Served::start();
    served.update(|dataplane| {
        dataplane.refused = Some(Refused { reason: "KubeProxyConflict", message: "stop it".into() });
    });
    let answer = served.introspect("/readyz").await;
    assert_eq!(answer.status, 503);
    let reasons = answer.json();
    assert_eq!(reasons["ready"], false);
    assert_eq!(reasons["notReady"][0], json!({"reason": "KubeProxyConflict", "message": "stop it"}));

    served.update(|dataplane| {
        dataplane.refused = None;
        dataplane.source.synced = true;
        dataplane.settled = true;
    });
    let answer = served.introspect("/readyz").await;
    assert_eq!((answer.status, answer.json()), (200, json!({"ready": true, "notReady": []})));
}

#[tokio::test]
async fn the_mode_and_the_process_answer_in_plain_text() {
    let served = Served::start();
    let mode = served.introspect("/proxyMode").await;
    assert_eq!((mode.status, mode.body.as_str()), (200, "ipvs"));
    assert!(mode.head.contains("content-type: text/plain; charset=utf-8"));
    assert_eq!(served.introspect("/healthz").await.body, "ok");
    assert_eq!(served.introspect("/configz").await.status, 404);
}

#[tokio::test]
async fn told_to_stop_the_servers_end_though_a_client_hangs_on() {
    let served = Served::start();
    let mut idle = TcpStream::connect(served.health).await.unwrap();
    idle.write_all(b"GET /healthz HTTP/1.1\r\n").await.unwrap();
    served.stop.send_replace(true);
    let ended = async {
        for server in served.servers {
            server.await.unwrap();
        }
    };
    tokio::time::timeout(GRACE * 5, ended).await.unwrap();
    assert!(TcpStream::connect(served.health).await.is_err());
}

#[tokio::test]
async fn an_address_in_use_is_a_clear_error() {
    let taken = bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let error = bind(taken.local_addr().unwrap()).unwrap_err().to_string();
    assert!(error.contains("another program has it"), "{error}");
    let error = bind("192.0.2.1:0".parse().unwrap()).unwrap_err().to_string();
    assert!(error.contains("this node has no such address"), "{error}");
}

#[tokio::test]
async fn the_default_address_takes_both_families() {
    let listener = bind(SocketAddr::new(default_health_address(true).ip(), 0)).unwrap();
    let port = listener.local_addr().unwrap().port();
    for ip in [Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()] {
        TcpStream::connect(SocketAddr::new(ip, port)).await.unwrap();
    }
}

#[test]
fn without_ipv6_the_default_address_is_that_of_ipv4() {
    assert_eq!(default_health_address(false).to_string(), "0.0.0.0:10256");
    assert_eq!(default_health_address(true).to_string(), "[::]:10256");
}

#[tokio::test(start_paused = true)]
async fn a_client_that_sends_no_request_is_cut_off() {
    let served = Served::start();
    let mut silent = TcpStream::connect(served.health).await.unwrap();
    silent.write_all(b"GET /healthz HTTP/1.1\r\nHost: no").await.unwrap();
    let mut answer = String::new();
    // Else this would wait for ever.
    silent.read_to_string(&mut answer).await.unwrap();
    assert!(answer.is_empty() || answer.contains("408"), "{answer}");
}

#[tokio::test(start_paused = true)]
async fn silent_clients_keep_nobody_out_for_long() {
    let served = Served::start();
    let mut silent = Vec::new();
    for _ in 0..CONNECTIONS {
        silent.push(TcpStream::connect(served.introspection).await.unwrap());
    }
    assert_eq!(served.introspect("/healthz").await.status, 200);
}
