"""How to reach a server that has bq, and what is set for an index and its queries."""

from typing import Literal

from pydantic import BaseModel, SecretStr

from ..api import DBCaseConfig, DBConfig, IndexType, MetricType

# Of each metric the name in operator classes, and the operator
METRICS = {
    MetricType.COSINE: ("cosine_ops", "<=>"),
    MetricType.L2: ("l2_ops", "<->"),
    MetricType.IP: ("ip_ops", "<#>"),
}


class BqConfig(DBConfig):
    user_name: str = "postgres"
    password: SecretStr = SecretStr("")
    host: str = "localhost"
    port: int = 5432
    db_name: str = "postgres"

    def to_dict(self) -> dict:
        """Keywords of psycopg.connect."""
        return {
            "host": self.host,
            "port": self.port,
            "dbname": self.db_name,
            "user": self.user_name,
            "password": self.password.get_secret_value(),
        }


class BqIndexConfig(BaseModel, DBCaseConfig):
    metric_type: MetricType | None = None
    index: IndexType = IndexType.AUTOINDEX
    column_type: Literal["vector", "halfvec"] = "vector"
    recall: float = 0.98  # of the nearest rows, how many queries should find
    maintenance_work_mem: str | None = None  # such as 4GB
    max_parallel_maintenance_workers: int | None = None

    def index_param(self) -> dict:
        name, _ = METRICS[self.metric_type or MetricType.COSINE]
        return {"operator_class": f"{self.column_type}_{name}"}

    def search_param(self) -> dict:
        _, operator = METRICS[self.metric_type or MetricType.COSINE]
        return {"operator": operator}

    def build_settings(self) -> dict:
        settings = {
            "maintenance_work_mem": self.maintenance_work_mem,
            "max_parallel_maintenance_workers": self.max_parallel_maintenance_workers,
        }
        return {name: str(value) for name, value in settings.items() if value is not None}

    def search_settings(self) -> dict:
        return {"bq.recall": str(self.recall), "jit": "off"}
