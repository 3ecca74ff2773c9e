//! The whole stack over real sockets, without TLS.

use std::{io, net::SocketAddr, time::Instant};

use http::Uri;
use kube::{Client, Config};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    task::JoinHandle,
};

use super::{ApiServer, ApiServers, config::Target, explain, stack};

/// Answers every request with its name as the version, and closes.
struct Server {
    address: SocketAddr,
    task: JoinHandle<()>,
}

impl Server {
    async fn start(name: &'static str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let task = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(answer(stream, name));
            }
        });
        Self { address, task }
    }

    /// From now on connections are refused.
    async fn stop(self) {
        self.task.abort();
        let _ = self.task.await;
    }
}

async fn answer(mut stream: TcpStream, name: &str) -> io::Result<()> {
    let mut request = [0; 4096];
    let _ = stream.read(&mut request).await?;
    let body = format!(
        r#"{{"major":"1","minor":"33","gitVersion":"{name}","gitCommit":"","gitTreeState":"","buildDate":"","goVersion":"","compiler":"","platform":""}}"#
    );
    let head = format!("HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: {}\r\n\r\n", body.len());
    stream.write_all(format!("{head}{body}").as_bytes()).await
}

/// An address where nobody listens.
async fn deserted() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap()
}

fn client_of(addresses: &[SocketAddr]) -> (Client, ApiServers) {
    let uri = |address: &SocketAddr| -> Uri { format!("http://{address}").parse().unwrap() };
    let servers = addresses.iter().map(|address| ApiServer::of(&uri(address)).unwrap()).collect();
    let servers = ApiServers::new(servers, false);
    let config = Config::new("http://kubernetes.default.svc".parse().unwrap());
    (stack::client(Target { config, servers: servers.clone() }).unwrap(), servers)
}

async fn ask(client: &Client) -> String {
    client.apiserver_version().await.unwrap().git_version
}

#[tokio::test]
async fn the_first_that_answers_is_asked_and_stays_until_it_does_not() {
    let (nobody, first, second) =
        (deserted().await, Server::start("first").await, Server::start("second").await);
    let (client, servers) = client_of(&[nobody, first.address, second.address]);
    assert_eq!(servers.current(), None);
    assert_eq!(ask(&client).await, "first");
    assert_eq!(servers.current().unwrap().to_string(), format!("http://{}", first.address));
    first.stop().await;
    assert_eq!(ask(&client).await, "second");
    assert_eq!(servers.list()[0].to_string(), format!("http://{}", second.address));
}

#[tokio::test]
async fn when_none_answers_the_error_names_all_of_them() {
    let (one, other) = (deserted().await, deserted().await);
    let (client, _) = client_of(&[one, other]);
    let began = Instant::now();
    let error = explain(&client.apiserver_version().await.unwrap_err());
    assert!(error.starts_with("no API server can be reached: "), "{error}");
    for address in [one, other] {
        assert!(error.contains(&format!("http://{address} (Connection refused")), "{error}");
    }
    assert!(began.elapsed().as_secs() < 5, "a refusal is no reason to wait");
}

#[tokio::test]
async fn an_answer_that_is_an_error_is_told_with_its_reason() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (client, _) = client_of(&[listener.local_addr().unwrap()]);
    tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await?;
        let _ = stream.read(&mut [0; 4096]).await?;
        let body = r#"{"kind":"Status","status":"Failure","message":"nodes is forbidden","reason":"Forbidden","code":403}"#;
        let head = format!("HTTP/1.1 403 Forbidden\r\ncontent-length: {}\r\n\r\n", body.len());
        stream.write_all(format!("{head}{body}").as_bytes()).await
    });
    let error = explain(&client.apiserver_version().await.unwrap_err());
    assert_eq!(error, "the API server answered 403 (Forbidden): nodes is forbidden");
}
