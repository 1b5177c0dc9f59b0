"""The Kubeflow pipeline and the command line around it.

Knows which steps run, in what order and with what configuration; what a step does is in
``components``. Nothing here may be imported by ``components`` or by ``tarpon``.
"""
