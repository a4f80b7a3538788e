"""One file for each revision, never edited after its release. `schema.HEAD_REVISION` names the newest."""
