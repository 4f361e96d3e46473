"""A server that speaks the part of CVAT's REST interface that Gleaner uses; no real CVAT was asked.

Paths, fields, paging and headers are those of the schema in ``cvat_sdk.api_client`` 2.80, and the SDK checks the types
of every response. A request with a field that the schema does not have is refused. What the schema does not say is from
CVAT's published source: an image that is sent twice is appended to itself, a new stage makes the state ``new``, boxes
get new numbers when they are written, and images are read by a queue after the upload.
"""

import json
import re
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.message import Message
from email.parser import BytesParser
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO
from pathlib import PurePosixPath
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from cvat_sdk.api_client import models
from PIL import Image, UnidentifiedImageError

TOKEN = "token-of-a-test"
_POINTS = {"rectangle": 4, "ellipse": 4}


def _now() -> str:
    return datetime.now(UTC).isoformat().replace("+00:00", "Z")


@dataclass
class HttpError(Exception):
    """What is answered instead of a success."""

    status: int
    detail: str


@dataclass
class FakeProject:
    number: int
    name: str
    labels: list[dict[str, Any]]
    organization: str
    guide: int | None = None


@dataclass
class FakeJob:
    number: int
    task: int
    start: int
    stop: int
    kind: str = "annotation"
    state: str = "new"
    stage: str = "annotation"
    assignee: str | None = None
    updated: str = field(default_factory=_now)
    annotations: dict[str, Any] = field(default_factory=lambda: {"version": 0, "tags": [], "shapes": [], "tracks": []})


@dataclass
class FakeTask:
    number: int
    name: str
    project: int
    segment_size: int
    uploading: dict[str, bytes] = field(default_factory=dict)
    frames: list[tuple[str, int, int]] = field(default_factory=list)
    """Name, width and height."""
    deleted: set[int] = field(default_factory=set)
    order: list[str] = field(default_factory=list)


@dataclass
class FakeRequest:
    """The import of a task's images; it goes on with every call to the server."""

    number: str
    task: int
    calls_left: int
    status: str = "queued"
    message: str = ""


class FakeCvat:
    """The state of the server, and what people do in the browser."""

    def __init__(self) -> None:
        self.projects: dict[int, FakeProject] = {}
        self.tasks: dict[int, FakeTask] = {}
        self.jobs: dict[int, FakeJob] = {}
        self.guides: dict[int, dict[str, Any]] = {}
        self.requests: dict[str, FakeRequest] = {}
        self.calls: list[str] = []
        """Method and path of each call."""
        self.import_takes_calls = 2
        self.is_disk_full = False
        self.url = ""
        self._next = 0
        self.lock = threading.RLock()

    def new_number(self) -> int:
        self._next += 1
        return self._next

    # --- what people do ---

    def job_of(self, image_id: str, *, second_look: bool = False) -> tuple[FakeJob, int]:
        """Find the job with an image, and the image's frame."""
        found = [
            (job, frame)
            for job in self.jobs.values()
            if ("second look" in self.tasks[job.task].name) is second_look and job.kind == "annotation"
            for frame in range(job.start, job.stop + 1)
            if image_id in self.tasks[job.task].frames[frame][0]
        ]
        assert len(found) == 1, f"{image_id} is in {len(found)} jobs"
        return found[0]

    def label(self, job: FakeJob, name: str) -> int:
        labels = self.projects[self.tasks[job.task].project].labels
        return int(next(label["id"] for label in labels if label["name"] == name))

    def shapes(self, image_id: str) -> list[dict[str, Any]]:
        """The boxes on an image."""
        job, frame = self.job_of(image_id)
        return [shape for shape in job.annotations["shapes"] if shape["frame"] == frame]

    def draw(
        self, image_id: str, *boxes: tuple[str, tuple[float, ...]], second_look: bool = False, **more: Any
    ) -> None:
        """Replace the boxes of an image, and save, as the browser does."""
        job, frame = self.job_of(image_id, second_look=second_look)
        kept = [shape for shape in job.annotations["shapes"] if shape["frame"] != frame]
        drawn = [
            {
                "type": "rectangle", "label_id": self.label(job, name), "frame": frame, "points": list(points),
                "rotation": 0.0, "occluded": False, "outside": False, "z_order": 0, "group": 0, "source": "manual",
                "attributes": [], "elements": [], "id": self.new_number(), **more,
            }
            for name, points in boxes
        ]  # fmt: skip
        job.annotations["shapes"] = [*kept, *drawn]
        self.touch(job)

    def tag(self, image_id: str, name: str) -> None:
        job, frame = self.job_of(image_id)
        entry = {"label_id": self.label(job, name), "frame": frame, "id": self.new_number(), "attributes": []}
        job.annotations["tags"].append(entry | {"group": 0, "source": "manual"})
        self.touch(job)

    def touch(self, job: FakeJob) -> None:
        """Save: a new job is in progress then."""
        job.updated = _now()
        job.state = "in progress" if job.state == "new" else job.state

    def finish(self, image_id: str, user: str | None = "ann", *, second_look: bool = False) -> None:
        """Finish the job with an image."""
        job, _ = self.job_of(image_id, second_look=second_look)
        job.assignee, job.state, job.updated = user, "completed", _now()

    def delete_tasks(self) -> None:
        self.tasks.clear()
        self.jobs.clear()

    def add_job(self, kind: str) -> None:
        """Add a ground truth job or a replica with the images of the first job, finished without a box."""
        first = min(self.jobs.values(), key=lambda job: job.number)
        number = self.new_number()
        self.jobs[number] = FakeJob(
            number, first.task, first.start, first.stop, kind, state="completed", assignee="boss"
        )

    # --- the interface ---

    def answer(self, method: str, path: str, query: dict[str, str], headers: Message, body: bytes) -> tuple[int, Any]:
        with self.lock:
            self.calls.append(f"{method} {path}")
            if headers.get("Authorization") != f"Bearer {TOKEN}":
                raise HttpError(401, "Invalid token.")
            self._go_on_importing()
            for pattern, function in _ROUTES:
                if match := re.fullmatch(pattern, f"{method} {path}"):
                    numbers = [int(text) for text in match.groups()]
                    return function(self, *numbers, Call(query, headers, body))
            raise HttpError(404, "Not found.")

    def _go_on_importing(self) -> None:
        for request in self.requests.values():
            if request.status not in ("queued", "started"):
                continue
            request.calls_left -= 1
            request.status = "started"
            if request.calls_left <= 0:
                self._import(request)

    def _import(self, request: FakeRequest) -> None:
        task = self.tasks.get(request.task)
        if task is None:
            request.status, request.message = "failed", "the task is gone"
            return
        name = ""
        try:
            for name in task.order:
                if self.is_disk_full:
                    raise OSError("no space left")
                image = Image.open(BytesIO(task.uploading[name]))
                image.load()
                assert task.uploading[name].endswith((b"IEND\xaeB`\x82", b"\xff\xd9"))
                assert task.uploading[name].count(b"IHDR") <= 1, "appended to itself"
                task.frames.append((name, *image.size))
        except (UnidentifiedImageError, OSError, AssertionError) as error:
            task.frames.clear()
            request.status, request.message = "failed", f"cannot read {name}: {error}"
            return
        for start in range(0, len(task.frames), task.segment_size):
            number = self.new_number()
            stop = min(start + task.segment_size, len(task.frames)) - 1
            self.jobs[number] = FakeJob(number, task.number, start, stop)
        request.status = "finished"


@dataclass
class Call:
    query: dict[str, str]
    headers: Message
    body: bytes

    def document(self, model: Any) -> dict[str, Any]:
        """The JSON of the body, whose fields must be those of a model of the schema."""
        content = json.loads(self.body or b"{}")
        if unknown := set(content) - set(model.openapi_types):
            raise HttpError(400, f"unknown fields {sorted(unknown)} of {model.__name__}")
        return dict(content)

    def page(self, path: str, entries: list[Any]) -> tuple[int, Any]:
        number, size = int(self.query.get("page", 1)), int(self.query.get("page_size", 10))
        following = f"http://next{path}?page={number + 1}" if number * size < len(entries) else None
        results = entries[(number - 1) * size : number * size]
        return 200, {"count": len(entries), "next": following, "previous": None, "results": results}


def _found(entries: Mapping[Any, Any], number: Any) -> Any:
    if number not in entries:
        raise HttpError(404, "Not found.")
    return entries[number]


def user_self(_: FakeCvat, __: Call) -> tuple[int, Any]:
    return 200, {"id": 1, "username": "gleaner", "groups": ["user"], "email": "gleaner@example.com"}


def _project_json(server: FakeCvat, project: FakeProject) -> dict[str, Any]:
    num_tasks = sum(task.project == project.number for task in server.tasks.values())
    return {
        "url": f"{server.url}/api/projects/{project.number}", "id": project.number, "name": project.name,
        "owner": {"id": 1, "username": "gleaner", "url": "", "first_name": "", "last_name": ""}, "assignee": None,
        "guide_id": project.guide, "bug_tracker": "", "task_subsets": [], "created_date": _now(),
        "updated_date": _now(), "status": "annotation", "dimension": "2d", "organization": None,
        "tasks": {"count": num_tasks, "url": ""}, "labels": {"url": ""},
    }  # fmt: skip


def list_projects(server: FakeCvat, call: Call) -> tuple[int, Any]:
    slug = call.headers.get("X-Organization", "")
    visible = [project for project in server.projects.values() if project.organization == slug]
    return call.page("/api/projects", [_project_json(server, project) for project in reversed(visible)])


def create_project(server: FakeCvat, call: Call) -> tuple[int, Any]:
    content = call.document(models.ProjectWriteRequest)
    names = [label["name"] for label in content["labels"]]
    if len(set(names)) < len(names):
        raise HttpError(400, "All label names must be unique")
    labels = []
    for label in content["labels"]:
        assert set(label) <= set(models.PatchedLabelRequest.openapi_types)
        assert all(set(one) <= set(models.AttributeRequest.openapi_types) for one in label["attributes"])
        attributes = [{**one, "id": server.new_number()} for one in label["attributes"]]
        labels.append({**label, "id": server.new_number(), "attributes": attributes})
    slug = call.headers.get("X-Organization", "")
    project = FakeProject(server.new_number(), content["name"], labels, slug)
    server.projects[project.number] = project
    return 201, _project_json(server, project)


def list_labels(server: FakeCvat, call: Call) -> tuple[int, Any]:
    project = _found(server.projects, int(call.query["project_id"]))
    more = {"color": "#33ddff", "sublabels": [], "project_id": project.number, "parent_id": None, "has_parent": False}
    return call.page("/api/labels", [{**label, **more} for label in project.labels])


def create_guide(server: FakeCvat, call: Call) -> tuple[int, Any]:
    content = call.document(models.AnnotationGuideWriteRequest)
    project = _found(server.projects, content["project_id"])
    number = server.new_number()
    dates = {"created_date": _now(), "updated_date": _now(), "task_id": None}
    server.guides[number] = {"id": number, **content, **dates}
    project.guide = number
    return 201, server.guides[number]


def read_guide(server: FakeCvat, number: int, _: Call) -> tuple[int, Any]:
    return 200, _found(server.guides, number)


def change_guide(server: FakeCvat, number: int, call: Call) -> tuple[int, Any]:
    _found(server.guides, number).update(call.document(models.PatchedAnnotationGuideWriteRequest))
    return 200, server.guides[number]


def _task_json(server: FakeCvat, task: FakeTask) -> dict[str, Any]:
    project = server.projects[task.project]
    num_jobs = sum(job.task == task.number for job in server.jobs.values())
    content = {
        "url": f"{server.url}/api/tasks/{task.number}", "id": task.number, "name": task.name,
        "project_id": project.number, "project_name": project.name, "mode": "annotation", "overlap": 0,
        "owner": {"id": 1, "username": "gleaner", "url": "", "first_name": "", "last_name": ""}, "assignee": None,
        "bug_tracker": "", "created_date": _now(), "updated_date": _now(), "segment_size": task.segment_size,
        "status": "annotation", "dimension": "2d", "subset": "", "organization": None, "guide_id": None,
        "jobs": {"count": num_jobs, "completed": 0, "validation": 0, "url": ""}, "labels": {"url": ""},
    }  # fmt: skip
    return {**content, "size": len(task.frames)} if task.frames else content


def list_tasks(server: FakeCvat, call: Call) -> tuple[int, Any]:
    number = int(call.query["project_id"])
    found = [_task_json(server, task) for task in server.tasks.values() if task.project == number]
    return call.page("/api/tasks", found[::-1])


def create_task(server: FakeCvat, call: Call) -> tuple[int, Any]:
    content = call.document(models.TaskWriteRequest)
    _found(server.projects, content["project_id"])
    task = FakeTask(server.new_number(), content["name"], content["project_id"], content["segment_size"])
    assert content["overlap"] == 0
    server.tasks[task.number] = task
    return 201, _task_json(server, task)


def read_task(server: FakeCvat, number: int, _: Call) -> tuple[int, Any]:
    return 200, _task_json(server, _found(server.tasks, number))


def delete_task(server: FakeCvat, number: int, _: Call) -> tuple[int, Any]:
    _found(server.tasks, number)
    del server.tasks[number]
    server.jobs = {key: job for key, job in server.jobs.items() if job.task != number}
    return 204, None


def upload(server: FakeCvat, number: int, call: Call) -> tuple[int, Any]:
    task = _found(server.tasks, number)
    if "Upload-Start" in call.headers:
        return 202, None
    if "Upload-Multiple" in call.headers:
        head = f"Content-Type: {call.headers['Content-Type']}\r\n\r\n".encode()
        for part in BytesParser().parsebytes(head + call.body).get_payload():
            assert isinstance(part, Message)
            if name := part.get_filename():
                content = part.get_payload(decode=True)
                assert isinstance(content, bytes)
                base = PurePosixPath(name).name
                task.uploading[base] = task.uploading.get(base, b"") + content
        return 200, None
    assert "Upload-Finish" in call.headers
    content = call.document(models.DataRequest)
    assert content["sorting_method"] == "predefined"
    task.order = content["upload_file_order"]
    if set(task.order) != set(task.uploading):
        raise HttpError(400, "Uploaded files do not match the 'upload_file_order' field contents")
    request = FakeRequest(f"action=create&target=task&id={number}", number, server.import_takes_calls)
    server.requests[request.number] = request
    return 202, {"rq_id": request.number}


def _request_json(request: FakeRequest) -> dict[str, Any]:
    operation = {"type": "create:task", "target": "task", "task_id": request.task, "project_id": None, "job_id": None}
    return {
        "id": request.number, "status": request.status, "message": request.message, "progress": None,
        "operation": operation, "created_date": _now(), "result_url": None, "result_id": None,
    }  # fmt: skip


def list_requests(server: FakeCvat, call: Call) -> tuple[int, Any]:
    number = int(call.query["task_id"])
    found = [_request_json(request) for request in server.requests.values() if request.task == number]
    return call.page("/api/requests", found)


def read_request(server: FakeCvat, number: int, _: Call) -> tuple[int, Any]:
    return 200, _request_json(_found(server.requests, f"action=create&target=task&id={number}"))


def task_meta(server: FakeCvat, number: int, _: Call) -> tuple[int, Any]:
    return 200, _meta_json(_found(server.tasks, number))


def _meta_json(task: FakeTask) -> dict[str, Any]:
    frames = [
        {"name": name, "width": width, "height": height, "related_files": 0, "has_related_context": False}
        for name, width, height in task.frames
    ]
    return {
        "chunks_updated_date": _now(), "frames": frames, "deleted_frames": sorted(task.deleted), "chapters": None,
        "chunk_size": 36, "size": len(frames), "image_quality": 95, "start_frame": 0, "stop_frame": len(frames) - 1,
        "frame_filter": "", "included_frames": None,
    }  # fmt: skip


def _job_json(server: FakeCvat, job: FakeJob) -> dict[str, Any]:
    task = server.tasks[job.task]
    user = {"id": 7, "username": job.assignee, "url": "", "first_name": "", "last_name": ""}
    return {
        "url": f"{server.url}/api/jobs/{job.number}", "id": job.number, "task_id": task.number, "task_name": task.name,
        "project_id": task.project, "project_name": server.projects[task.project].name, "guide_id": None,
        "assignee": user if job.assignee else None, "dimension": "2d", "mode": "annotation", "bug_tracker": None,
        "status": "annotation", "stage": job.stage, "state": job.state, "type": job.kind,
        "frame_count": job.stop - job.start + 1, "start_frame": job.start, "stop_frame": job.stop,
        "created_date": _now(), "updated_date": job.updated, "organization": None, "parent_job_id": None,
        "issues": {"count": 0, "url": ""}, "labels": {"url": ""},
    }  # fmt: skip


def list_jobs(server: FakeCvat, call: Call) -> tuple[int, Any]:
    number, kind = int(call.query["task_id"]), call.query.get("type")
    found = [job for job in server.jobs.values() if job.task == number and kind in (None, job.kind)]
    return call.page("/api/jobs", [_job_json(server, job) for job in reversed(found)])


def change_job(server: FakeCvat, number: int, call: Call) -> tuple[int, Any]:
    job = _found(server.jobs, number)
    content = call.document(models.PatchedJobWriteRequest)
    stage = content.get("stage", job.stage)
    job.state = content.get("state", "new" if stage != job.stage else job.state)
    job.stage, job.updated = stage, _now()
    return 200, _job_json(server, job)


def read_annotations(server: FakeCvat, number: int, _: Call) -> tuple[int, Any]:
    return 200, _found(server.jobs, number).annotations


def write_annotations(server: FakeCvat, number: int, call: Call) -> tuple[int, Any]:
    job = _found(server.jobs, number)
    content = call.document(models.LabeledDataRequest)
    labels = {label["id"]: label for label in server.projects[server.tasks[job.task].project].labels}
    written: dict[str, Any] = {"version": 0, "tracks": []}
    for kind, model in (("tags", models.LabeledImageRequest), ("shapes", models.LabeledShapeRequest)):
        written[kind] = []
        for item in content.get(kind, ()):
            if set(item) - set(model.openapi_types) or item["label_id"] not in labels:
                raise HttpError(400, f"{kind}: {item} is not valid")
            known = {attribute["id"] for attribute in labels[item["label_id"]]["attributes"]}
            assert {attribute["spec_id"] for attribute in item["attributes"]} <= known
            assert job.start <= item["frame"] <= job.stop
            assert kind == "tags" or len(item["points"]) == _POINTS.get(item["type"], len(item["points"]))
            written[kind].append({"group": 0, **item, "id": server.new_number()})
    job.annotations, job.updated = written, _now()
    return 200, job.annotations


def change_job_meta(server: FakeCvat, number: int, call: Call) -> tuple[int, Any]:
    job = _found(server.jobs, number)
    task = server.tasks[job.task]
    frames = set(range(job.start, job.stop + 1))
    wanted = set(call.document(models.PatchedJobDataMetaWriteRequest)["deleted_frames"])
    task.deleted = (task.deleted - frames) | (wanted & frames)
    return 200, _meta_json(task)


_ROUTES: list[tuple[str, Callable[..., tuple[int, Any]]]] = [
    ("GET /api/users/self", user_self),
    ("GET /api/projects", list_projects),
    ("POST /api/projects", create_project),
    ("GET /api/labels", list_labels),
    ("POST /api/guides", create_guide),
    (r"GET /api/guides/(\d+)", read_guide),
    (r"PATCH /api/guides/(\d+)", change_guide),
    ("GET /api/tasks", list_tasks),
    ("POST /api/tasks", create_task),
    (r"GET /api/tasks/(\d+)", read_task),
    (r"DELETE /api/tasks/(\d+)", delete_task),
    (r"POST /api/tasks/(\d+)/data/", upload),
    (r"GET /api/tasks/(\d+)/data/meta", task_meta),
    ("GET /api/requests", list_requests),
    (r"GET /api/requests/action=create&target=task&id=(\d+)", read_request),
    ("GET /api/jobs", list_jobs),
    (r"PATCH /api/jobs/(\d+)", change_job),
    (r"GET /api/jobs/(\d+)/annotations/", read_annotations),
    (r"PUT /api/jobs/(\d+)/annotations/", write_annotations),
    (r"PATCH /api/jobs/(\d+)/data/meta", change_job_meta),
]


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    wbufsize = -1  # headers and body in one packet; the kernel delays a second one
    fake: FakeCvat

    def _handle(self) -> None:
        parts = urlsplit(self.path)
        query = {key: values[-1] for key, values in parse_qs(parts.query, keep_blank_values=True).items()}
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        try:
            status, content = self.fake.answer(self.command, unquote(parts.path), query, self.headers, body)
        except HttpError as error:
            status, content = error.status, {"detail": error.detail}
        except Exception as error:  # a mistake in a test's fake is seen at the client
            status, content = 500, {"detail": f"{type(error).__name__}: {error}"}
        raw = b"" if content is None else json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/vnd.cvat+json")
        self.send_header("Content-Length", str(len(raw)))
        self.end_headers()
        self.wfile.write(raw)

    do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = _handle

    def log_message(self, format: str, *args: Any) -> None:
        """Write nothing."""


@contextmanager
def running_cvat() -> Iterator[FakeCvat]:
    """Serve a fake on a free port of this machine."""
    fake = FakeCvat()
    handler = type("Handler", (_Handler,), {"fake": fake})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    fake.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield fake
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
