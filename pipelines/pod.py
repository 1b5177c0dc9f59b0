"""Applies a pod profile of ``configs/pod/`` to a task: the only place that speaks Kubernetes.

Profiles matter to compiled pipelines; the local runner has no pods.
"""

from __future__ import annotations

from collections.abc import Mapping

from kfp import dsl, kubernetes

from pipelines.config import PodProfile


def apply(task: dsl.PipelineTask, profile: PodProfile, environment: Mapping[str, str]) -> None:
    """Set what the pod of one task asks for, what it accepts and what it finds in its environment.

    KFP has no defaults for a whole pipeline (kubeflow/pipelines#11498), so every task passes
    through here.
    """
    task.set_cpu_request(profile.cpu_request).set_cpu_limit(profile.cpu_limit)
    task.set_memory_request(profile.memory_request).set_memory_limit(profile.memory_limit)
    if profile.gpus:
        task.set_accelerator_type(profile.gpu_resource).set_accelerator_limit(profile.gpus)
    if profile.retries:
        task.set_retry(
            num_retries=profile.retries,
            backoff_duration=profile.retry_wait,
            backoff_factor=2.0,
            backoff_max_duration="600s",
        )
    if profile.shm:
        kubernetes.empty_dir_mount(
            task, volume_name="shm", mount_path="/dev/shm", medium="Memory", size_limit=profile.shm
        )
    for claim, folder in sorted(profile.volumes.items()):
        kubernetes.mount_pvc(task, pvc_name=claim, mount_path=folder)
    for label, value in sorted(profile.node_selector.items()):
        kubernetes.add_node_selector(task, label_key=label, label_value=value)
    for taint in profile.tolerations:
        kubernetes.add_toleration(
            task, key=taint.key, operator=taint.operator, value=taint.value, effect=taint.effect
        )
    for secret, variables in sorted(profile.secrets.items()):
        kubernetes.use_secret_as_env(
            task, secret_name=secret, secret_key_to_env=dict(variables), optional=True
        )
    for name, value in sorted(environment.items()):
        task.set_env_variable(name=name, value=value)
