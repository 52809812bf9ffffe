"""The chunk table of a blob as the store has it: its pages are blobs of one chunk, fetched before the blob itself."""

from __future__ import annotations

from jetfleet_contract.chunks import BlobInfo, ChunkTable, TablePage, lower_pages, open_table, top_page

from .store import BlobStore

PAGE_LIMIT = 1 << 16


def missing_pages(store: BlobStore, info: BlobInfo) -> tuple[list[TablePage], set[str]]:
    """The pages to fetch next, and the names of all lower pages as far as they are known."""
    top = top_page(info)
    if top is None:
        return [], set()
    if not store.has(top.blob):
        return [top], set()
    lower = lower_pages(info, store.read(top.blob, PAGE_LIMIT))
    return [page for page in lower if not store.has(page.blob)], {page.blob for page in lower}


def load_table(store: BlobStore, blob: str, info: BlobInfo) -> ChunkTable:
    """The table, from pages that are all here. Raises as `BlobStore.read`; MalformedError `table.bad`."""
    top = top_page(info)
    if top is None:
        return open_table(blob, info)
    data = store.read(top.blob, PAGE_LIMIT)
    lower = lower_pages(info, data)
    return open_table(blob, info, [store.read(page.blob, PAGE_LIMIT) for page in lower] if lower else [data])
