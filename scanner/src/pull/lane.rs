//! Work for people who are not known yet: so much at a time, and the oldest makes room for the youngest.

use std::collections::VecDeque;

use tokio::task::AbortHandle;

/// Tasks that may be ended at any time.
#[derive(Debug)]
pub struct Lane {
    under_way: VecDeque<AbortHandle>,
    most: usize,
}

impl Lane {
    /// For at most so many tasks.
    pub fn new(most: usize) -> Self {
        Self { under_way: VecDeque::new(), most }
    }

    /// Takes in a task that has begun.
    pub fn enter(&mut self, task: AbortHandle) {
        if self.under_way.len() >= self.most {
            self.under_way.retain(|task| !task.is_finished());
        }
        if self.under_way.len() >= self.most
            && let Some(oldest) = self.under_way.pop_front()
        {
            oldest.abort();
        }
        self.under_way.push_back(task);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::task::JoinSet;

    #[tokio::test]
    async fn the_oldest_makes_room_for_the_youngest() {
        let (mut lane, mut tasks) = (Lane::new(2), JoinSet::new());
        let handles: Vec<_> = (0..3).map(|_| tasks.spawn(std::future::pending::<()>())).collect();
        let first = handles[0].id();
        handles.into_iter().for_each(|handle| lane.enter(handle));
        let ended = tasks.join_next_with_id().await.unwrap().unwrap_err();
        assert!(ended.is_cancelled() && ended.id() == first);
        assert_eq!((tasks.len(), lane.under_way.len()), (2, 2));
    }

    #[tokio::test]
    async fn who_is_done_takes_no_room() {
        let (mut lane, mut tasks) = (Lane::new(1), JoinSet::new());
        lane.enter(tasks.spawn(async {}));
        assert!(tasks.join_next().await.unwrap().is_ok());
        lane.enter(tasks.spawn(async {}));
        assert!(tasks.join_next().await.unwrap().is_ok());
        assert_eq!(lane.under_way.len(), 1);
    }
}
