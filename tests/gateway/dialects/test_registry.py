from __future__ import annotations

from crossroads.gateway.dialects import MemoryStore, ResponsesSettings, build_store, build_surfaces


def test_the_settings_name_the_store() -> None:
    assert build_store(ResponsesSettings(store="none")) is None
    assert isinstance(build_store(ResponsesSettings()), MemoryStore)


def test_there_is_a_surface_for_every_path() -> None:
    surfaces = build_surfaces()
    assert {path: surface.dialect for path, surface in surfaces.by_path.items()} == {
        "/chat/completions": "chat",
        "/completions": "completions",
        "/responses": "responses",
        "/embeddings": "embeddings",
        "/messages": "messages",
    }
