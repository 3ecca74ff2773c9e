//! Telling an error.

use std::error::Error;

use fairlead_crds::api_client::explain;
use kube::runtime::watcher;

/// An error with its causes, in one line, fit for a condition's message.
pub fn chain(error: &(dyn Error + 'static)) -> String {
    let mut text = own_text(error);
    let mut source = cause_of(error);
    while let Some(cause) = source {
        let cause_text = own_text(cause);
        // Many of kube's errors and of those below it tell their cause themselves.
        if !text.contains(&cause_text) {
            text = format!("{text}: {cause_text}");
        }
        source = cause_of(cause);
    }
    text
}

/// What a request failed by is told as a whole.
fn cause_of<'a>(error: &'a (dyn Error + 'static)) -> Option<&'a (dyn Error + 'static)> {
    if error.is::<kube::Error>() { None } else { error.source() }
}

/// kube tells an answer of the API server twice, the second time in Rust's debug format, and of a lost
/// connection every layer.
fn own_text(error: &(dyn Error + 'static)) -> String {
    if let Some(error) = error.downcast_ref() {
        return explain(error);
    }
    match error.downcast_ref::<watcher::Error>() {
        Some(watcher::Error::InitialListFailed(_)) => "failed to list".to_owned(),
        Some(watcher::Error::WatchStartFailed(_)) => "failed to start watching".to_owned(),
        Some(watcher::Error::WatchFailed(_)) => "watch broke off".to_owned(),
        Some(watcher::Error::WatchError(status)) => status.message.clone(),
        Some(watcher::Error::NoResourceVersion) | None => error.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use kube::core::Status;

    use super::*;

    #[test]
    fn an_answer_of_the_api_server_is_told_once_and_in_its_own_words() {
        let refused = Status::failure("pods is forbidden: no list", "Forbidden").with_code(403);
        let error = watcher::Error::InitialListFailed(kube::Error::Api(Box::new(refused)));
        assert_eq!(
            chain(&error),
            "failed to list: the API server answered 403 (Forbidden): pods is forbidden: no list"
        );
    }
}
