"""What must hold at every moment of a history, whoever drives it. Pure bookkeeping.

The first words of a PropertyError name the property: `make mutants` prints them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from tests.sim.disk import SimDisk

from mailraft.node.interfaces import Configuration, Entry, node_of

Applied = tuple[int, bytes]  # term and payload of an entry


class PropertyError(AssertionError):
    """A promise of Raft or of the store does not hold; the first words name it."""


class Watch:
    """Told of every leader, commit and applied entry of all replicas; raises at the first wrong."""

    def __init__(self) -> None:
        self.leaders: dict[tuple[int, int], int] = {}  # (group, term) -> node
        self._applied: dict[tuple[int, int], Applied] = {}  # (group, index) -> what
        self._committed: dict[tuple[int, int], int] = {}  # (group, node) -> index
        self._terms: dict[tuple[int, int], int] = {}  # (group, node) -> term that was said

    def leads(self, group: int, term: int, node: int) -> bool:
        """Election safety (Raft section 5.2): one leader a term. True when it is news."""
        first = self.leaders.setdefault((group, term), node)
        if first != node:
            raise PropertyError(
                f"election safety: n{first} and n{node} lead group {group} in term {term}"
            )
        return first == node

    def applies(self, group: int, entry: Entry) -> None:
        """State machine safety (Raft section 5.4.3): one entry an index, on every replica."""
        what = (entry.term, entry.payload)
        first = self._applied.setdefault((group, entry.index), what)
        if first != what:
            raise PropertyError(
                f"state machine safety: index {entry.index} of group {group} is {first} and {what}"
            )

    def learns(self, group: int, node: int, index: int) -> None:
        """A follower heard up to where all is committed, under whatever configuration that was."""
        self._committed[group, node] = max(index, self._committed.get((group, node), 0))

    def commits(
        self,
        group: int,
        node: int,
        index: int,
        term: int,
        configuration: Configuration,
        disks: Mapping[int, SimDisk],
    ) -> None:
        """A leader counts an entry as committed only when a majority has it on disk (row 5)."""
        if self._committed.get((group, node), 0) >= index:
            return
        self._committed[group, node] = index
        holders = [
            voter
            for voter in configuration.voters
            if disks[node_of(voter)].holds_durably(group, index, term)
        ]
        if 2 * len(holders) <= len(configuration.voters):
            raise PropertyError(
                f"durable majority: n{node} commits {index} of group {group} in term {term}, on "
                f"the disks of {[node_of(voter) for voter in holders]} only"
            )

    def restarts(self, group: int, node: int, term: int) -> None:
        """Terms never fall: what was said in one rests on it (Raft figure 2, persistent state)."""
        said = self._terms.get((group, node), 0)
        self._committed.pop((group, node), None)
        if term < said:
            raise PropertyError(f"durable term: n{node} said {said}, and came back with {term}")

    def forgets(self, group: int, node: int) -> None:
        """Its disk is lost: it comes back with no term, and has to find out."""
        self._terms.pop((group, node), None)

    def says(self, group: int, node: int, term: int) -> None:
        """A vote, an acknowledgement or a confirmation left the node."""
        self._terms[group, node] = max(term, self._terms.get((group, node), 0))

    def applied_entries(self, group: int) -> Iterator[tuple[int, bytes]]:
        """Every entry that some replica applied, by index."""
        for (of, index), (_, payload) in sorted(self._applied.items()):
            if of == group:
                yield index, payload
