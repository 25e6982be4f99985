"""Work ahead of the consumer in a second thread."""

from collections import deque
from collections.abc import Generator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")


def work_ahead(items: Generator[T, None, None], depth: int) -> Generator[T, None, None]:
    """Yield `items` while a thread makes the next `depth` of them.

    An exception of `items` is raised here, at the place of the item. Closing this generator stops
    the thread and closes `items`.

    Args:
        items: made in the thread, one after the other.
        depth: items that may be ready or in the making; with 0 there is no thread.
    """
    if depth == 0:
        yield from items
        return
    end = object()
    pool = ThreadPoolExecutor(1, thread_name_prefix="raypot-loader")
    try:
        pending: deque[Future[T | object]] = deque(
            pool.submit(next, items, end) for _ in range(depth)
        )
        while (item := pending.popleft().result()) is not end:
            pending.append(pool.submit(next, items, end))
            yield item  # type: ignore[misc]  # `end` was sorted out above
            del item
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
        items.close()
