//! A thread that keeps what has child processes.
//!
//! The kernel kills a child when the *thread* that spawned it ends (see [`crate::process::die_with_parent`]), so that
//! must be one that lives as long as the child shall, whoever asked for it.

use std::sync::mpsc::{self, Sender};
use std::thread;

use anyhow::{Context, Result};

type Job<T> = Box<dyn FnOnce(&mut T) + Send>;

/// A value that is made, used and dropped on a thread of its own.
#[derive(Debug)]
pub struct Keeper<T> {
    jobs: Sender<Job<T>>,
    thread: Option<thread::JoinHandle<()>>,
}

impl<T: 'static> Keeper<T> {
    /// Makes the value.
    pub fn start(make: impl FnOnce() -> Result<T> + Send + 'static) -> Result<Self> {
        let (jobs, todo) = mpsc::channel::<Job<T>>();
        let (started, outcome) = mpsc::channel();
        let thread = thread::spawn(move || {
            let value = make();
            let (value, said) = match value {
                Ok(value) => (Some(value), Ok(())),
                Err(error) => (None, Err(error)),
            };
            // nobody listens when the starter has died, and then there are no jobs either
            let _ = started.send(said);
            if let Some(mut value) = value {
                for job in todo {
                    job(&mut value);
                }
            }
        });
        let keeper = Self { jobs, thread: Some(thread) };
        outcome.recv().context("the thread that starts it died")??;
        Ok(keeper)
    }

    /// Has the thread do something with the value, after what was asked before.
    pub fn ask<R: Send + 'static>(&self, job: impl FnOnce(&mut T) -> R + Send + 'static) -> Result<R> {
        let (done, result) = mpsc::channel();
        let job = Box::new(move |value: &mut T| {
            let _ = done.send(job(value));
        });
        self.jobs.send(job).ok().context("the thread that keeps it died")?;
        result.recv().context("the thread that keeps it died")
    }
}

impl<T> Drop for Keeper<T> {
    fn drop(&mut self) {
        // the thread ends with its last job
        self.jobs = mpsc::channel().0;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;
    use crate::process::{Reaped, die_with_parent};

    #[test]
    fn a_child_outlives_the_thread_that_asked_for_it_and_not_its_keeper() {
        let spawn = || Ok(Reaped(die_with_parent(Command::new("sleep").arg("60")).spawn()?));
        let asked = thread::spawn(move || Keeper::start(spawn).unwrap()).join().unwrap();
        let running = asked.ask(|child| child.0.try_wait().unwrap().is_none()).unwrap();
        assert!(running);
        let entry = format!("/proc/{}", asked.ask(|child| child.0.id()).unwrap());
        drop(asked);
        assert!(!std::path::Path::new(&entry).exists());
    }

    #[test]
    fn what_cannot_be_made_is_an_error() {
        let error = Keeper::<()>::start(|| anyhow::bail!("no port is free")).unwrap_err();
        assert_eq!(error.to_string(), "no port is free");
    }
}
