"""SimpleITK on one thread a process: parallel work is done by processes, an image here is too small to share out."""

import functools


@functools.cache
def itk():
    """The SimpleITK module. Its own threads, for whose barriers small images mostly wait, are switched off."""
    import SimpleITK

    SimpleITK.ProcessObject.SetGlobalDefaultNumberOfThreads(1)
    return SimpleITK
