//! What makes the controller look again.

use std::{sync::Arc, time::Duration};

use futures::{FutureExt as _, Stream};
use tokio::sync::Notify;

/// A flag that many watches raise and one controller lowers: however often it is raised in between,
/// the controller looks once.
#[derive(Clone, Debug)]
pub struct Trigger(Arc<Notify>);

impl Trigger {
    /// Asks for a look.
    pub fn fire(&self) {
        self.0.notify_one();
    }
}

/// A trigger, and the stream of looks: the first comes `pause` after it was asked for, so that what
/// a thousand nodes report at once is looked at together. Unlike the debounce of kube's controller it
/// is not put off for ever by changes that go on.
pub fn debounced(pause: Duration) -> (Trigger, impl Stream<Item = ()> + Send) {
    let notify = Arc::new(Notify::new());
    let looks = futures::stream::unfold(Arc::clone(&notify), move |notify| async move {
        notify.notified().await;
        tokio::time::sleep(pause).await;
        // Raised during the pause: this look sees it.
        let _ = notify.notified().now_or_never();
        Some(((), notify))
    });
    (Trigger(notify), looks)
}

#[cfg(test)]
mod tests {
    use futures::StreamExt as _;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_thousand_changes_are_one_look() {
        let (trigger, looks) = debounced(Duration::from_millis(500));
        let mut looks = Box::pin(looks);
        trigger.fire();
        let more = trigger.clone();
        tokio::spawn(async move {
            for _ in 0..1000 {
                more.fire();
            }
        });
        assert_eq!(looks.next().await, Some(()));
        assert!(tokio::time::timeout(Duration::from_secs(60), looks.next()).await.is_err());
        trigger.fire();
        assert_eq!(looks.next().await, Some(()));
    }

    #[tokio::test(start_paused = true)]
    async fn changes_that_go_on_do_not_put_the_look_off() {
        let (trigger, looks) = debounced(Duration::from_millis(500));
        let mut looks = Box::pin(looks);
        let noise = tokio::spawn(async move {
            loop {
                trigger.fire();
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        });
        let three = async {
            for _ in 0..3 {
                looks.next().await;
            }
        };
        tokio::time::timeout(Duration::from_secs(2), three).await.unwrap();
        noise.abort();
    }
}
