from tests.finished_project import project

__all__ = ["project"]
