"""Is this batch new, a repetition, or from a producer that has been replaced?"""

from collections import deque

from streaming.embedded.batches import Header
from streaming.embedded.codes import ErrorCode

_REMEMBERED = 5  # as many batches as an idempotent producer may have in flight
_SEQUENCES = 1 << 31


class _Producer:
    def __init__(self, epoch: int) -> None:
        self.epoch = epoch
        self.batches: deque[tuple[int, int, int]] = deque(maxlen=_REMEMBERED)


class Sequences:
    """What one partition knows of its idempotent producers: their epoch and their last five batches."""

    def __init__(self) -> None:
        self._producers: dict[int, _Producer] = {}

    def judge(self, header: Header) -> tuple[ErrorCode, int | None]:
        """Whether to append the batch; with NONE and an offset, it was appended there before.

        >>> sequences = Sequences()
        >>> first = Header(0, 100, 0, 1, 0, producer_id=7, producer_epoch=0, base_sequence=0)
        >>> sequences.note(first, offset=40)
        >>> sequences.judge(first)
        (<ErrorCode.NONE: 0>, 40)
        >>> sequences.judge(first._replace(base_sequence=2))
        (<ErrorCode.NONE: 0>, None)
        >>> sequences.judge(first._replace(base_sequence=5))[0].name
        'OUT_OF_ORDER_SEQUENCE_NUMBER'
        """
        known = self._producers.get(header.producer_id)
        if known is None:
            return ErrorCode.NONE, None
        if header.producer_epoch < known.epoch:
            return ErrorCode.INVALID_PRODUCER_EPOCH, None
        if header.producer_epoch > known.epoch or not known.batches:
            return (ErrorCode.NONE if header.base_sequence == 0 else ErrorCode.OUT_OF_ORDER_SEQUENCE_NUMBER), None
        last = _last_sequence(header)
        for held_first, held_last, offset in known.batches:
            if (held_first, held_last) == (header.base_sequence, last):
                return ErrorCode.NONE, offset
        newest = known.batches[-1][1]
        if header.base_sequence == (newest + 1) % _SEQUENCES:
            return ErrorCode.NONE, None
        if header.base_sequence <= newest:
            return ErrorCode.DUPLICATE_SEQUENCE_NUMBER, None
        return ErrorCode.OUT_OF_ORDER_SEQUENCE_NUMBER, None

    def note(self, header: Header, offset: int) -> None:
        """Remember a batch that was appended at `offset`; a marker only raises the producer's epoch."""
        known = self._producers.get(header.producer_id)
        if known is None or header.producer_epoch > known.epoch:
            known = self._producers[header.producer_id] = _Producer(header.producer_epoch)
        if not header.control:
            known.batches.append((header.base_sequence, _last_sequence(header), offset))


def _last_sequence(header: Header) -> int:
    return (header.base_sequence + header.last_delta) % _SEQUENCES
