"""OpenLineage events around a stage: what started, what it read and wrote, and how it ended.

Off unless the environment names a receiver in OpenLineage's own variables (`OPENLINEAGE_URL`,
`OPENLINEAGE_CONFIG` or `OPENLINEAGE__TRANSPORT__...`, a file or an address). Events are a courtesy to other
tools and prove nothing, so a receiver that fails is warned about and never fails a stage.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any
from uuid import UUID

from paser.progress import warn

if TYPE_CHECKING:
    from openlineage.client import OpenLineageClient

    from paser.lineage.record import Artefact

PRODUCER = "urn:paser"
FLOW_RUN, FLOW = "PASER_FLOW_RUN_ID", "PASER_FLOW_NAME"


def wanted(environment: Mapping[str, str]) -> bool:
    """Whether the environment names a receiver of events."""
    if environment.get("OPENLINEAGE_DISABLED", "").lower() in ("1", "true"):
        return False
    return any(
        name in ("OPENLINEAGE_URL", "OPENLINEAGE_CONFIG") or name.startswith("OPENLINEAGE__TRANSPORT")
        for name, value in environment.items()
        if value
    )


class StageEvents:
    """The events of one run of a stage; does nothing where none are wanted."""

    def __init__(self, stage: str, environment: Mapping[str, str] = os.environ) -> None:
        self._stage = stage
        self._environment = environment
        self._client: OpenLineageClient | None = None
        self._run_id = ""
        if wanted(environment):
            with _never_fatal("start"):
                self._open()

    def _open(self) -> None:
        try:
            from openlineage.client import OpenLineageClient
            from openlineage.client.uuid import generate_new_uuid
        except ImportError:
            warn("OpenLineage events are wanted, but not installed: `pip install 'paser[audit]'`")
            return
        self._client = OpenLineageClient()
        self._run_id = str(generate_new_uuid())

    @contextlib.contextmanager
    def around(self, inputs: Iterable[Artefact]) -> Iterator[list[Artefact]]:
        """START before the block, then COMPLETE, or FAIL with the error; the block fills the list that it
        gets with the outputs."""
        read, written = list(inputs), list[Any]()
        self._emit("START", read, [])
        try:
            yield written
        except BaseException as error:
            self._emit("FAIL", read, [], error)
            raise
        self._emit("COMPLETE", read, written)

    def _emit(
        self, kind: str, read: list[Artefact], written: list[Artefact], error: BaseException | None = None
    ) -> None:
        if self._client is None:
            return
        with _never_fatal(kind):
            self._client.emit(self._event(kind, read, written, error))

    def _event(
        self, kind: str, read: list[Artefact], written: list[Artefact], error: BaseException | None
    ) -> Any:
        from openlineage.client.event_v2 import InputDataset, Job, OutputDataset, Run, RunEvent, RunState
        from openlineage.client.facet_v2 import (
            dataset_version_dataset,
            error_message_run,
            input_statistics_input_dataset,
            output_statistics_output_dataset,
        )

        space = self._environment.get("OPENLINEAGE_NAMESPACE") or "paser"
        facets: dict[str, Any] = {}
        if parent := self._parent(space):
            facets["parent"] = parent
        if error is not None:
            facets["errorMessage"] = error_message_run.ErrorMessageRunFacet(
                message=f"{type(error).__name__}: {error}", programmingLanguage="python"
            )

        def version(artefact: Artefact) -> dict[str, Any]:
            found = dataset_version_dataset.DatasetVersionDatasetFacet(f"sha256:{artefact.sha256}")
            return {"version": found}

        inputs = [
            InputDataset(
                space,
                a.path,
                facets=version(a),
                inputFacets={
                    "inputStatistics": input_statistics_input_dataset.InputStatisticsInputDatasetFacet(
                        rowCount=a.rows, size=a.bytes
                    )
                },
            )
            for a in read
        ]
        outputs = [
            OutputDataset(
                space,
                a.path,
                facets=version(a),
                outputFacets={
                    "outputStatistics": output_statistics_output_dataset.OutputStatisticsOutputDatasetFacet(
                        rowCount=a.rows, size=a.bytes
                    )
                },
            )
            for a in written
        ]
        return RunEvent(
            eventType=RunState(kind),
            eventTime=datetime.now(UTC).isoformat(),
            run=Run(self._run_id, facets=facets),
            job=Job(space, f"paser.{self._stage}"),
            inputs=inputs,
            outputs=outputs,
            producer=PRODUCER,
        )

    def _parent(self, space: str) -> Any:
        """The flow that started this stage, where it says so in the environment."""
        from openlineage.client.facet_v2 import parent_run

        started_by = self._environment.get(FLOW_RUN)
        if not started_by:
            return None
        return parent_run.ParentRunFacet(
            run=parent_run.Run(str(UUID(started_by))),
            job=parent_run.Job(space, self._environment.get(FLOW) or "flow"),
        )


@contextlib.contextmanager
def _never_fatal(kind: str) -> Iterator[None]:
    """A receiver may fail in any way its transport can; the stage goes on."""
    try:
        yield
    except Exception as error:
        warn(f"OpenLineage event {kind} was not delivered: {type(error).__name__}: {error}")
