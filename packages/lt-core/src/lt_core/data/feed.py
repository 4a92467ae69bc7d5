"""Deliver the batches of one stage, epoch after epoch, and know the exact place in them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch

from lt_core.data.combined import CombinedLoader, combined_size, flatten, is_last, outline, rounds, unflatten
from lt_core.data.dealing import END
from lt_core.data.evaluation import Passes, shared_weight
from lt_core.data.given import advise, is_empty, limited, names_of, source_problems
from lt_core.data.leaf import Leaf, Moment, ends_with, note_ends, noted_anew
from lt_core.data.leaf import count as samples_in
from lt_core.data.loader_leaf import ViewLeaf, make_leaf
from lt_core.data.peers import FeedPeers
from lt_core.data.resident import resident, resident_problem
from lt_core.data.stager import Stager
from lt_core.notices import warn
from lt_core.state import rng
from lt_core.state.agreement import SharedEnd
from lt_interface import Collectives, World
from lt_interface.errors import CheckpointError, ConfigError, Problem, raise_problems

__all__ = ["Feed"]

_INF = float("inf")


@dataclass
class _Failed:
    """Error in the place of a batch that was fetched ahead."""

    error: Exception


class Feed(Passes):
    """Batches of one stage, epoch after epoch, from whatever the user gave.

    In training, ``last`` says of the batch handed out last whether it ends its epoch: by size where the
    size is known, else by looking ahead, at the moment when it is asked. Loaders with a batch sampler
    are asked for indices, never for data; other sources for their next batch. A place is counted when
    its batch is handed out, whatever was prefetched.

    Args:
        source: A DataLoader, a list of batches, any iterable, a function that makes one, a
            CombinedLoader, or a nested list or dict of those.
        stage: ``"train"``, ``"validate"``, ``"test"`` or ``"predict"``.
        world: Who this rank is; loaders are shared among data ranks.
        seed: The run's seed: batches that workers load are seeded from it.
        limit: A number of batches or a fraction (a float up to 1.0) of them: of the epoch's batches in
            training, of each loader's in evaluation.
        sequential: Whether shuffling samplers give way to sequential ones (overfit_batches).
        where: How errors name the source.
        collectives: With several ranks, the exchange with them: all samplers draw rank 0's order, each epoch a new one,
            and what is no map-style DataLoader is compared (see `lt_core.data.dealing`).
        share: Whether loaders are shared among data ranks; else each rank takes all that its loader gives.
        ends: With several ranks, in training, what they agree by on the last batch where nobody knows it beforehand.
        shadows: Whether each rank is handed equally many batches in evaluation, too. A rank that has fewer gets one
            with samples that are not its own, of weight 0; otherwise only a rank that has none at all gets such a one.
        device: Where the loaders' sets are kept from now on; None leaves them as they are.

    Attributes:
        user: What the user gave.
        loaders: The loaders in it.
        names: The metric suffix of each.
        num_batches: Batches of a training epoch after the limit, as far as loaders say; in evaluation the sum of
            ``sizes``. Asked anew each epoch.
        sizes: Batches of each loader after the limit.
        last: Whether the batch handed out last ends its epoch (training).
        batch_indices: Dataset indices of the batch handed out last, where it came from a map-style DataLoader.
        weight: Factor of this rank's mean loss in the mean over data ranks: 1 but in a short global batch, and 0 for
            a batch that only repeats samples. With several loaders side by side, 1 where theirs differ.
        stager: What batches of training take to the device, one batch ahead where that leaves no trace; they come from
            the feed on the device then. None leaves them as they are. To be set before an epoch begins.
        exact: Whether the number of batches is known, and not just what a loader says or a limit allows.
        moved: Batches of the epoch that were done, where a resume found other batches or ranks; None where it did not.
        ends: As above, where the ranks look ahead; else None.

    Raises:
        ConfigError: If the source or the limit cannot be used; all problems at once.
    """

    moved: int | None
    _state: dict[str, Any] | None

    def __init__(
        self,
        source: Any,
        *,
        stage: str,
        world: World | None = None,
        seed: int = 0,
        limit: int | float | None = 1.0,
        sequential: bool = False,
        where: str = "",
        collectives: Collectives | None = None,
        share: bool = True,
        ends: SharedEnd | None = None,
        shadows: bool = False,
        device: torch.device | None = None,
    ) -> None:
        self.user, self.stage, self.seed, self.limit = source, stage, seed, 1.0 if limit is None else limit
        self.shadows = shadows
        everyone = world or World()
        self.world, self.where = everyone if share else World(), where or f"{stage} loader"
        self.train = stage == "train"
        combined = source if isinstance(source, CombinedLoader) else None
        self.mode: str = combined.mode if combined is not None else "max_size_cycle" if self.train else "sequential"
        tree = combined.iterables if combined is not None else source
        self.loaders, paths = ([], []) if not self.train and is_empty(tree) else flatten(tree)
        self._tree = outline(tree)
        self.names = names_of(paths)
        problems = source_problems(self.loaders, paths, self.where, self.stage, self.mode)
        if device is not None and not problems:
            named = zip(self.loaders, self._places(), strict=True)
            problems = [p for p in (resident_problem(user, where) for user, where in named) if p is not None]
        raise_problems(problems)
        self.leaves = [
            make_leaf(user, number, world=self.world, seed=seed, train=self.train, sequential=sequential)
            for number, user in enumerate(
                self.loaders if device is None else (resident(u, device) for u in self.loaders)
            )
        ]
        for number, leaf in enumerate(self.leaves):
            leaf.limit = combined.limit_of(number) if combined is not None else _INF
            leaf.snapshots = leaf.snapshots and self.train
        self._peers: FeedPeers | None = None
        if collectives is not None and everyone.size > 1:
            self._peers = FeedPeers(collectives, everyone.size, self.world, seed)
            self._peers.join(self.leaves, self._places(), self.train)
        self.exact = all(leaf.exact and leaf.whole != _INF for leaf in self.leaves)
        self.ends = None if self._peers is None or self.exact else ends
        self.bare = bool(paths) and not paths[0]
        self._measure(first=True)
        if not sequential and device is None:
            advise(self.leaves, self.stage, self.where)
        self._reset(0)
        self.stager: Stager | None = None
        self._open = self._reported = False
        self._total: int | float = self.num_batches
        self._next: Callable[[], Any] = iter(()).__next__

    def measure(self) -> None:
        """Ask the loaders for their sizes anew: samplers and datasets may differ from epoch to epoch."""
        for leaf in self.leaves:
            leaf.measure()
        self._measure()

    def _measure(self, first: bool = False) -> None:
        """Set the sizes and apply the limit; later on only a training that has nothing left is refused."""
        sizes = [min(leaf.size, leaf.limit) for leaf in self.leaves]
        rule, problems = "a loader must have at least one batch", list[Problem]()
        fix = "Check the dataset's length, batch_size and drop_last, or set the limit to 0."
        for leaf, size, where in zip(self.leaves, sizes, self._places(), strict=True):
            if size == 0 and self.limit != 0 and (first or (self.train and leaf.exact)):
                whole = min(leaf.whole, leaf.limit)
                got = f"a loader of length {whole}" + (f" for {leaf.shards} ranks" if whole else "")
                problems.append(Problem(where, rule, got, fix))
        raise_problems(problems)
        self._said = combined_size(sizes, self.mode)
        if self.mode == "sequential":
            pairs = zip(sizes, self._places(), strict=True)
            self.sizes = [limited(size, self.limit, where, problems) for size, where in pairs]
            self.num_batches: int | float = sum(self.sizes)
        else:
            self.num_batches = limited(self._said, self.limit, self.where, problems)
            self.sizes = [min(size, self.num_batches) for size in sizes] if self.train else [self.num_batches]
        raise_problems(problems if first or self.train else [])

    def _latest_end(self) -> int | float:
        """Return after how many rounds an epoch ends at the latest: by its size if that is known, else by the limit."""
        if self.exact or (0 <= self.limit < 1 and isinstance(self.limit, float)):
            return self.num_batches
        return self.limit if isinstance(self.limit, int) else _INF

    def relimit(self, limit: int | float | None) -> None:
        """Set another limit, from the next epoch on.

        Raises:
            ConfigError: If the limit cannot be used.
        """
        self.limit = 1.0 if limit is None else limit
        self._measure(first=True)

    @property
    def early(self) -> bool:
        """Return whether a batch may be fetched in front of the step before its own, so that a stager is of use."""
        return len(self.leaves) == 1 and self.leaves[0].early

    def _places(self) -> list[str]:
        return [self.where + name for name in self.names]

    # -- delivering --

    def epoch(self, epoch: int, limit: int | float | None = None) -> Iterator[Any]:
        """Begin an epoch: make the iterators, draw the first indices, and return the batches' iterator.

        The random state is snapshot right before the iterators are made, at the call. In evaluation
        each loader's iterator is made when its turn comes.

        Args:
            epoch: The epoch's number, given to samplers and datasets that have ``set_epoch``.
            limit: In evaluation, the most batches to take of each loader this time.

        Returns:
            In training an iterator of batches, else one of ``(batch, batch_idx, dataloader_idx)``.
        """
        self._reset(epoch)
        if not self.train:
            return self._evaluation(epoch, _INF if limit is None else limit)
        for leaf in self.leaves:
            leaf.set_epoch(epoch)
        self.measure()
        self._total = self._latest_end()
        if not self._total:
            return iter(())
        for leaf in self.leaves:
            leaf.open(epoch)
        self._settle_size()
        return self._training()

    def foresee(self) -> int | float:
        """Return the batches of a training epoch, before the first one, too, where data is dealt; all ranks call it."""
        if self._peers is not None and any(leaf.dealer and leaf.dealer.dealt is None for leaf in self.leaves):
            for leaf in self.leaves:
                leaf.foresee()
            self._settle_size()
        return self.num_batches

    def _settle_size(self) -> None:
        """Measure anew what was found to be dealt, and end the epoch where the rank with the fewest batches ends."""
        if self._peers is not None and not self._peers.even:
            self._measure()
            self._total = self._peers.fewest(self._latest_end())
            self.num_batches = self._peers.fewest(self.num_batches)

    def _reset(self, epoch: int) -> None:
        self._epoch, self._rounds, self._open, self._over = epoch, 0, True, False
        self._pending: list[Any] = []
        self._before: dict[str, Any] | None = None
        self._moment: Moment | None = None
        self._last: bool | None = False  # None: not yet found out
        self.batch_indices: list[int] | None = None
        self.weight, self.moved, self._state = 1.0, None, None

    def _training(self) -> Iterator[Any]:
        """Return the generator that fits the sources: for one plain sized loader, the shortest."""
        leaf = self.leaves[0]
        if len(self.leaves) == 1 and self.bare:
            self._next = leaf.take
            if self.exact and leaf.shards == 1 and self.stager is None:
                return self._straight(leaf, int(self._total), leaf.batches)
        else:
            walk = rounds(self.leaves, self.mode)
            tree = self._tree
            self._next = lambda: unflatten(tree, iter(next(walk)))
        if self.stager is not None:
            self._next = self.stager.ahead(self._next)
        return self._by_rounds(self.exact)

    def _straight(self, leaf: Leaf, total: int, done: int) -> Iterator[Any]:
        """Yield the batches of one loader of known size; nothing is called between them."""
        iterator, taken = leaf.iterator, leaf.taken
        self._last = done >= total
        if taken is None:
            for number, batch in zip(range(done + 1, total), iterator, strict=False):
                leaf.batches = number
                yield batch
        else:
            for number, batch, indices in zip(range(done + 1, total), iterator, taken, strict=False):
                leaf.batches = number
                leaf.samples += len(indices) if type(indices) is list else samples_in(indices)
                self.batch_indices = indices
                yield batch
        if not self._last:
            batch = next(iterator, END)
            if batch is END:
                self._ended_early(leaf.batches, total)
                return
            leaf.batches, self._last = total, True
            if taken is not None:
                self.batch_indices = indices = next(taken)
                leaf.samples += samples_in(indices)
            yield batch
        self._exhaust(leaf)

    def _by_rounds(self, exact: bool) -> Iterator[Any]:
        """Yield the rounds of several loaders, or of one that is shared, staged or of unknown size.

        Args:
            exact: Whether the number of rounds is known. Else ``last`` is found out when it is asked, by taking the
                next round ahead, which is then pending.
        """
        take, single, ends = self._next, self.leaves[0] if len(self.leaves) == 1 else None, self.ends
        stager = self.stager
        self._last = exact and self._rounds >= self._total
        if ends is not None and self._rounds < self._total:
            self._begin_together()
        while self._rounds < self._total:
            if self._pending:  # taken ahead, when `last` was asked
                batch, self._before, self._moment = self._pending.pop(), None, None
                if isinstance(batch, _Failed):
                    raise batch.error
            else:
                try:
                    batch = take()
                except StopIteration:
                    break
            if batch is END:
                break
            self._rounds += 1
            if single is not None:
                self.batch_indices = single.indices
            self.weight = shared_weight(self.leaves) if single is None else single.weight
            self._last = self._rounds == self._total if exact else None
            mine = False
            if ends is not None:
                mine = self._is_last()
                ends.send(mine)
            elif stager is not None and self._rounds < self._total:
                self._moment = self.leaves[0].moment()
                ended = self._look_ahead()
                self._last = False if exact else ended
            yield batch if stager is None else stager.take(batch)
            if ends is not None and ends.heard():
                if self._peers is not None and self._rounds < self._total:
                    self._peers.report_rest(self.leaves, not mine, self.where)
                break
        if not exact:
            self._last = self._over = True
            if not self._rounds or (ends is None and self._rounds < min(self._total, self._said)):
                self._ended_early(self._rounds, self._said)
        elif self._rounds < self._total:
            self._ended_early(self._rounds, self._total)
        elif single is not None:
            self._exhaust(single)

    @property
    def last(self) -> bool:
        """Whether the batch handed out last ends its epoch; found out when it is asked, by looking ahead if need be."""
        if self._last is None:
            self._last = self._is_last() if self.ends is None else self.ends.heard()
        return self._last

    def _begin_together(self) -> None:
        """Fetch the first batch of those to come; a rank that has none ends the epoch for all."""
        if not self._pending:
            self._look_ahead()
        if self._peers is not None and self._peers.collectives.any(self._pending[0] is END):
            self._pending, self._over = [END], True

    def _is_last(self) -> bool:
        if self._rounds >= self._total:
            return True
        ended = [leaf.ended() for leaf in self.leaves]
        if None not in ended:
            return is_last([bool(one) for one in ended], [leaf.cycle > 0 for leaf in self.leaves], self.mode)
        self._before = self._place()
        if any(one.peek_draws for one in self.leaves):
            self._before["ahead"] = rng.snapshot()
        return self._look_ahead()

    def _look_ahead(self) -> bool:
        """Fetch the next batch, or its error, to be handed out in its turn; return whether there is none."""
        try:
            self._pending.append(self._next())
        except StopIteration:
            self._pending.append(END)
            self._over = True
        except Exception as error:
            self._pending.append(_Failed(error))
        return self._pending[0] is END

    def _exhaust(self, leaf: Leaf) -> None:
        """Run a pass to its end as a plain loop does: some samplers draw once more from their generator there."""
        if leaf.limit == _INF and self._total >= leaf.size and not self._over:
            next(leaf.iterator, None)
            self._over = True

    def _ended_early(self, done: int, total: int | float) -> None:
        """Warn of a wrong length.

        Raises:
            ConfigError: If there was no batch at all.
        """
        if not done:
            fix = "Check what it iterates."
            if hasattr(type(self.loaders[0]), "__next__"):
                fix = "A generator can be used once: give a function that makes one."
            raise ConfigError(Problem(self.where, f"epoch {self._epoch} must have a batch", "no batch", fix))
        self._last = True
        if total != _INF and not self._reported:
            self._reported = True
            warn(f"{self.where} said it has {total} batches but ended after {done}. Correct its __len__.")

    # -- the place --

    @property
    def samples(self) -> int:
        """Samples handed out in the running passes, over all ranks: not those that were looked ahead at."""
        if self._moment is not None:
            return self._moment[1]
        if self._before is not None:
            return sum(leaf["samples"] for leaf in self._before["leaves"])
        return sum(leaf.samples for leaf in self.leaves)

    def _place(self) -> dict[str, Any]:
        single = self.leaves[0].batches if len(self.leaves) == 1 and self.leaves[0].shards == 1 else self._rounds
        return {
            "epoch": self._epoch,
            "open": self._open,
            "rounds": max(single, self._rounds),
            "world": self.world.data_size,
            "leaves": [leaf.state() for leaf in self.leaves],
            "ahead": None,
        }

    def _place_now(self) -> dict[str, Any]:
        """Return the place behind the batch handed out last, whatever was looked ahead at."""
        if self._moment is not None:
            with self.leaves[0].at(self._moment):
                return self._place()
        return self._place() if self._before is None else {**self._before, "ahead": rng.pack(self._before["ahead"])}

    @property
    def waits(self) -> bool:
        """Return whether a state was loaded that nothing went on from yet."""
        return self._state is not None

    def began(self, epoch: int) -> bool:
        """Return whether the batches of an epoch were begun, and the epoch not closed.

        Args:
            epoch: The epoch's number.
        """
        return self._open and self._epoch == epoch

    @property
    def handed(self) -> int:
        """Return how many batches of the running epoch were handed out."""
        return int(self._place_now()["rounds"])

    def place_before(self, rounds: int) -> dict[str, Any] | None:
        """Return the place that the feed had some batches ago, or None where it cannot be found again.

        Args:
            rounds: How many of the batches handed out last are to come again.
        """
        ahead = 1 if self._pending and self._pending[0] is not END else 0
        left = self.handed - rounds
        if len(self.leaves) > 1 and self.mode == "sequential":
            return None
        if len(self.leaves) == 1:
            self.leaves[0].indices = self.batch_indices
        # One that was not begun anew may have ended before the others.
        leaves = [
            leaf.state_at(
                leaf.batches - rounds - ahead if leaf.cycle or len(self.leaves) == 1 else min(leaf.batches, left)
            )
            for leaf in self.leaves
        ]
        return None if None in leaves else {**self._place(), "rounds": left, "leaves": leaves}

    def state_dict(self) -> dict[str, Any]:
        """Return the place in the running epoch, and what outlives an epoch, as plain values and tensors.

        The process's own random state is the caller's to save.
        """
        if self._state is not None:  # nothing was handed out since it was loaded
            return self._state
        # Whether what keeps its own place has begun anew already, its state does not show: the feed must know.
        known = self._open and self._rounds and any(leaf.keeps_place for leaf in self.leaves)
        ended = known and self.last
        if ended and len(self.leaves) == 1:
            self._exhaust(self.leaves[0])
        over = ended or (self._over if self.ends is None or not self._rounds else self.last)
        if over or not self._open:
            return noted_anew(self.leaves, {**self._place(), "over": True} if over else self._place())
        if known and self._before is not None:
            note_ends(self.leaves, self._before)
        return self._place_now()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over a saved state: then ``resume`` goes on inside its epoch, ``epoch`` begins the next.

        Raises:
            CheckpointError: If the state is of another number of loaders.
        """
        saved = state["leaves"]
        if len(saved) != len(self.leaves):
            raise CheckpointError(
                f"{self.where}: a resume needs the loaders that the checkpoint was made with. "
                f"Got {len(self.leaves)} where there were {len(saved)}. Give the same loaders."
            )
        for leaf, one, where in zip(self.leaves, saved, self._places(), strict=True):
            leaf.load(one)
            if leaf.exact and one["size"] != leaf.size and one.get("world", leaf.shards) == leaf.shards:
                warn(
                    f"{where}: {leaf.size} batches now, {one['size']} when the checkpoint was made. "
                    "The resumed run cannot be the same as an uninterrupted one."
                )
        self._state = state

    def matches(self, state: dict[str, Any]) -> bool:
        """Return whether a place that another feed was left at can be found in this one: loaders alike, not used up.

        Args:
            state: The other feed's ``state_dict()``.
        """
        return len(state["leaves"]) == len(self.leaves) and all(map(Leaf.matches, self.leaves, state["leaves"]))

    def resume(self, epoch: int) -> Iterator[Any]:
        """Go on inside the epoch of the loaded state, at the batch after the last one handed out.

        Iterators are made under the random state of the epoch's start; indices are skipped, and no
        skipped sample is loaded. The process's random state is then the caller's again, so that it
        governs the next fetch of data.

        Args:
            epoch: The epoch's number.

        Raises:
            CheckpointError: If no state was loaded.
        """
        state, self._state = self._state, None
        if state is None:
            raise CheckpointError(f"{self.where}: resume() needs a state. Call load_state_dict() first.")
        if not state["open"] or state["epoch"] != epoch:
            return self.epoch(epoch)  # saved after one epoch ended and before the next one's iterators were made
        self._reset(epoch)
        if state.get("over"):  # all batches were handed out, and what keeps its own place begins anew
            self._last = self._over = True
            return iter(())
        before = rng.snapshot()
        try:
            for leaf in self.leaves:
                leaf.set_epoch(epoch)
            self.measure()
            for leaf, one in zip(self.leaves, state["leaves"], strict=True):
                leaf.resume(one, epoch)
            self._rounds = -(-state["rounds"] * state["world"] // self.world.data_size)
            self._total = self._latest_end()
            self._settle_size()
            longest = ends_with(self.leaves, self.mode)
            if isinstance(longest, ViewLeaf):
                self._rounds = longest.batches
                if self.exact:
                    rest = longest.batches + longest.rest()
                    self._total = rest if self.num_batches >= longest.size else min(self.num_batches, rest)
            self.moved = self._rounds if self._rounds != state["rounds"] else None
            batches = self._training()
            self._last = self._rounds >= self._total if self.exact or self.ends is not None else None
            if state.get("ahead") is not None:
                rng.restore(state["ahead"])
                self._before = {**self._place(), "ahead": state["ahead"]}
                ended = self._look_ahead()
                self._last = ended if self._last is None else self._last  # who asks must not look ahead once more
        finally:
            rng.restore(before)
        return batches

    def close_epoch(self) -> None:
        """Let go of the running epoch: its iterators and whatever was looked ahead at."""
        self._open = False
        self._pending.clear()
        self._before = self._moment = None
        for leaf in self.leaves:
            leaf.release()

    def close(self) -> None:
        """Shut down every worker, those of each leaf, whatever fails at another's."""
        with ExitStack() as rest:
            rest.callback(self.close_epoch)
            for leaf in self.leaves:
                rest.callback(leaf.close)
